"""Sets of hard requests: chosen by the figure they are named for, and measured as the paper measures its own."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from corsa_plugins.alphaedit import AlphaEditor
from corsa_plugins.alphaedit.conflict_sets import conflict_set, reworded
from corsa_plugins.errors import SettingError
from corsa_plugins.requests import EditRequest, Probe, RequestError
from tests.alphaedit.conftest import REQUESTS, SETTINGS, Bench

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
    figures = {request.case_id: row[FIGURE[kind]] for request, row in zip(CANDIDATES, rows, strict=True)}
    hard = [figures[request.case_id] for request, one in zip(found.requests, found.hard, strict=True) if one]
    assert sorted(hard) == sorted(figures.values())[-2:]
    for name, mean in found.means.items():
        values = {request.case_id: row[name] for request, row in zip(CANDIDATES, rows, strict=True)}
        assert mean == pytest.approx(sum(values[r.case_id] for r in found.requests) / 8, rel=1e-4)


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
