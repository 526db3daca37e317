"""Sets of hard requests: chosen by the figure they are named for, and measured as the paper measures its own."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from difflib import SequenceMatcher
from typing import Any

import pytest
import torch

from corsa_plugins.alphaedit import AlphaEditor
from corsa_plugins.bench.conflict_sets import conflict_set, reworded, rewordings, validation_probes
from corsa_plugins.data.requests import EditRequest, Probe, RequestError
from corsa_plugins.errors import SettingError
from tests.fixtures.alphaedit import REQUESTS, SETTINGS, Bench

CANDIDATES = [
    EditRequest(prompt=f"{start} {subject} {end}", target_new=target, subject=subject, case_id=f"{subject} {number}")
    for subject in ("France", "Italy", "Anna Berg", "Oslo")
    for number, (start, end, target) in enumerate(
        [("The capital of", "is", "Madrid"), ("Where was", "born?", "Rome"), ("Which city is", "?", "Paris")]
    )
]
QUICK = replace(SETTINGS, values=replace(SETTINGS.values, steps=3), n_contexts=1)
FIGURE = {"preserved": "subspace_conflict", "prior": "prior_conflict", "inconsistent": "inconsistency"}


@pytest.fixture
def edited(llama_bench: Bench) -> AlphaEditor:
    # In float64: Adam's first step is the sign of the gradient, and of a coordinate of next to none the rounding of a
    # batch of other requests can turn the sign round.
    llama_bench.model.double()
    editor = llama_bench.editor(QUICK)
    editor.edit(REQUESTS[:2], answers=False)
    return editor


@pytest.mark.parametrize("kind", FIGURE)
def test_the_hard_ones_are_those_of_the_highest_figures(edited: AlphaEditor, kind: Any) -> None:
    state, model = edited.state, edited.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = conflict_set(edited, CANDIDATES, kind, 8, hard_share=0.25, seed=1)
    assert edited.state is state
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert found.kind == kind
    assert len(found.requests) == len(found.hard) == 8
    assert max(Counter(request.case_id for request in found.requests).values()) == 1
    assert sum(found.hard) == 2

    rows = edited.diagnose(CANDIDATES, values=True).rows()
    by = [row[FIGURE[kind]] for row in rows] if kind != "inconsistent" else edited.residuals(CANDIDATES, 2)
    figures = {request.case_id: figure for request, figure in zip(CANDIDATES, by, strict=True)}
    hard = [figures[request.case_id] for request, one in zip(found.requests, found.hard, strict=True) if one]
    assert sorted(hard) == sorted(figures.values())[-2:]
    for name, mean in found.means.items():
        values = {request.case_id: row[name] for request, row in zip(CANDIDATES, rows, strict=True)}
        assert mean == pytest.approx(sum(values[r.case_id] for r in found.requests) / 8, rel=1e-4)


@pytest.mark.parametrize("settings", [replace(QUICK, smoothing=None), QUICK])
def test_residuals_are_those_that_an_edit_meets_at_the_layer(llama_bench: Bench, settings: Any) -> None:
    editor = llama_bench.editor(settings)
    editor.edit(REQUESTS[:1], answers=False)
    asked, state, before = CANDIDATES[3:8], editor.state, llama_bench.weights()
    first, second = editor.residuals(asked, 1), editor.residuals(asked, 2)
    assert editor.state is state
    assert all(torch.equal(value, before[name]) for name, value in llama_bench.weights().items())
    # before anything is edited they are the inconsistencies
    assert first == pytest.approx(
        [row["inconsistency"] for row in editor.diagnose(asked, values=True).rows()], rel=1e-4
    )
    assert second != pytest.approx(first, rel=1e-4)
    # the last layer's update takes all that is missing, less what was smoothed
    editor.edit(asked, name="asked", answers=False)
    batch = editor.state.batch("asked")
    taken = batch.layers[1].left.norm(dim=0) / (1 - torch.tensor([r.smoothing[1] for r in batch.report.requests]))
    assert taken.tolist() == pytest.approx(second, rel=1e-4)
    for place in (0, 3):
        with pytest.raises(SettingError, match="must be 1 to 2"):
            editor.residuals(asked, place)


def test_a_failure_while_residuals_are_measured_changes_nothing(llama_bench: Bench, monkeypatch: Any) -> None:
    editor = llama_bench.editor(QUICK)
    before, edit_layer = llama_bench.weights(), AlphaEditor._edit_layer

    def interrupted(*arguments: Any) -> Any:
        edit_layer(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(AlphaEditor, "_edit_layer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        editor.residuals(CANDIDATES[:2], 2)
    assert all(torch.equal(value, before[name]) for name, value in llama_bench.weights().items())


def test_no_request_is_in_two_sets_or_an_edit_in_force(edited: AlphaEditor) -> None:
    candidates = [*CANDIDATES, *REQUESTS[:2], REQUESTS[0].model_copy(update={"target_new": "Bern"})]
    first = conflict_set(edited, candidates, "preserved", 6, seed=0)
    second = conflict_set(edited, candidates, "prior", 6, exclude=first.requests, seed=0)
    assert not {r.prompt for r in first.requests} & {r.prompt for r in second.requests}
    in_force = {(r.prompt, r.target_new) for r in REQUESTS[:2]}
    assert not in_force & {(r.prompt, r.target_new) for r in (*first.requests, *second.requests)}
    with pytest.raises(RequestError, match="a set of 8 from 7 candidates"):
        conflict_set(edited, CANDIDATES, "prior", 8, exclude=CANDIDATES[:5])


def test_the_table_and_the_figures_say_the_same(edited: AlphaEditor) -> None:
    found = conflict_set(edited, CANDIDATES, "prior", 8, hard_share=0.25)
    for name, mean in found.means.items():
        assert sum(float(row[name] or 0) for row in found.figures) / 8 == pytest.approx(mean)
    hard = [row["prior_conflict"] for row, one in zip(found.figures, found.hard, strict=True) if one]
    rest = [row["prior_conflict"] for row, one in zip(found.figures, found.hard, strict=True) if not one]
    assert min(float(figure or 0) for figure in hard) >= max(float(figure or 0) for figure in rest) - 1e-6
    assert list(found.table().columns[1].cells) == ["2", "6", "8"]
    headings = [str(column.header) for column in found.table().columns]
    assert [heading for heading in headings if "*" in heading] == (
        {"preserved": ["K0 subspace (Eq. 6) *"], "prior": ["earlier edits *"]}.get(found.kind, [])
    )


def test_earlier_edits_are_reworded_with_answers_of_their_relation() -> None:
    def capital(land: str, new: str, *prompts: str) -> EditRequest:
        return EditRequest(
            prompt=f"The capital of {land} is", subject=land, target_new=new, target_old=f"old {new}",
            validation_prompts=prompts, case_id=land,
        )  # fmt: skip

    edited = [
        capital("France", "Rome", "France has the capital"),
        capital("Italy", "Oslo", "Italy has the capital"),
        capital("Spain", "Bern"),
        EditRequest(prompt="Ada plays", subject="Ada", target_new="chess", validation_prompts=["Ada's game is"]),
    ]
    others = [capital("Norway", "Riga"), EditRequest(prompt="Bob eats", subject="Bob", target_new="fish")]
    found = rewordings(edited, others, seed=1)
    assert {request.case_id for request in found} == {"France-reworded", "Italy-reworded"}  # the only ones that can be
    for request in found:
        earlier = next(one for one in edited if one.subject == request.subject)
        assert request.prompt in earlier.validation_prompts
        assert request.target_old == earlier.target_new
        answers = {a for one in (*edited[:3], others[0]) for a in (one.target_new, one.target_old)}
        assert request.target_new in answers - {earlier.target_new, earlier.target_old}
    assert len({rewordings(edited, others, 1, seed=seed)[0].case_id for seed in range(8)}) == 2
    assert rewordings(edited, others, 0) == []


def test_the_validation_set_is_unlike_the_edit_prompts_and_never_a_paraphrase() -> None:
    requests = [
        EditRequest(
            prompt=f"The capital of {land} is",
            subject=land,
            target_new="Rome",
            paraphrases=[f"{land} is governed from"],
            validation_prompts=[f"The capital of {land} is:", f"Name the city where {land} has its government:"],
        )
        for land in ("France", "Italy", "Spain", "Norway")
    ]
    found = validation_probes(requests, share=0.5, seed=0)
    assert len(found) == 2
    prompts = {
        request.validation_prompts[1]: request for request in requests
    }  # the first is an edit prompt but for a colon
    assert all(prompts[probe.prompt].target_new == probe.answer for probe in found)
    for probe in found:
        assert all(SequenceMatcher(None, probe.prompt, r.prompt, autojunk=False).ratio() < 0.9 for r in requests)
    assert {probe.prompt for probe in validation_probes(requests, share=1)} == set(prompts)
    drawn = {validation_probes(requests, share=0.25, seed=seed)[0].prompt for seed in range(20)}
    assert drawn == set(prompts)
    with pytest.raises(RequestError, match="0 of 4 requests have a validation prompt"):
        validation_probes(requests, share=0.5, below=0.1)
    with pytest.raises(SettingError, match="share is 2"):
        validation_probes(requests, share=2)


def test_the_seed_decides_the_draw_and_the_order(edited: AlphaEditor) -> None:
    sets = [conflict_set(edited, CANDIDATES, "prior", 5, seed=seed) for seed in (0, 0, 1)]
    assert sets[0] == sets[1]
    assert sets[0].requests != sets[2].requests
    everything = conflict_set(edited, CANDIDATES, "prior", len(CANDIDATES), hard_share=1)
    assert sorted(str(r.case_id) for r in everything.requests) == sorted(str(r.case_id) for r in CANDIDATES)
    assert all(everything.hard)
    assert not any(conflict_set(edited, CANDIDATES, "preserved", 3, hard_share=0).hard)


def test_without_earlier_edits_there_is_no_figure_for_them(llama_bench: Bench) -> None:
    found = conflict_set(llama_bench.editor(QUICK), CANDIDATES[:3], "preserved", 2)
    assert found.means["prior_conflict"] is None
    assert found.means["preserved_conflict"] is not None


def test_refusals(edited: AlphaEditor, llama_bench: Bench) -> None:
    kind: Any = "odd"
    with pytest.raises(SettingError, match="preserved, prior, inconsistent"):
        conflict_set(edited, CANDIDATES, kind, 2)
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(SettingError, match="hard_share is"):
            conflict_set(edited, CANDIDATES, "prior", 2, hard_share=share)
    for place in (0, 3):
        with pytest.raises(SettingError, match=f"residual_at is {place}: it must be 1 to 2"):
            conflict_set(edited, CANDIDATES, "inconsistent", 2, residual_at=place)
    for size in (0, 13):
        with pytest.raises(RequestError, match=f"a set of {size} from 12 candidates"):
            conflict_set(edited, CANDIDATES, "prior", size)
    with pytest.raises(RequestError, match="has no subject"):
        conflict_set(edited, [EditRequest(prompt="a", target_new="b")], "prior", 1)
    edited.revert_all()
    with pytest.raises(SettingError, match="no edits in force"):
        conflict_set(edited, CANDIDATES, "prior", 2)
    edited.settings = replace(QUICK, layers=(0,))
    edited.edit(REQUESTS[:1], answers=False)
    edited.settings = replace(QUICK, layers=(1,))
    with pytest.raises(SettingError, match="no edit in force changed layers 1"):
        conflict_set(edited, CANDIDATES, "prior", 2)


def test_an_earlier_edit_in_other_words() -> None:
    probe = Probe(prompt="The French speak", answer="French")
    earlier = EditRequest(
        prompt="The capital of France is",
        target_new="Rome",
        subject="France",
        target_old="Paris",
        paraphrases=("France is governed from",),
        neighborhood=(probe,),
        portability=(Probe(prompt="Its river is the", answer="Tiber"),),
        validation_prompts=("Name its capital:", "France has the capital", "In France one governs from"),
        case_id="france",
    )
    found = reworded(earlier, "Oslo")
    assert found == EditRequest(
        prompt="France has the capital",
        target_new="Oslo",
        subject="France",
        target_old="Rome",
        paraphrases=earlier.paraphrases,
        neighborhood=earlier.neighborhood,
        validation_prompts=("Name its capital:", "In France one governs from"),
        case_id="france-reworded",
    )
    assert reworded(earlier.model_copy(update={"case_id": None}), "Oslo").case_id is None
    with pytest.raises(RequestError, match=r"case 'france'.*no validation prompt names the subject"):
        reworded(earlier.model_copy(update={"validation_prompts": ("Name its capital:",)}), "Oslo")
    with pytest.raises(RequestError, match=r"case 'france'.*'Rome ' is its answer already"):
        reworded(earlier, "Rome ")
