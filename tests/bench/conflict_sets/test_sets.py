"""Sets of hard requests: chosen by the figure they are named for, and measured as the paper measures its own."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from corsa_plugins.alphaedit import AlphaEditor
from corsa_plugins.bench.conflict_sets import ConflictPlan, conflict_set, first_of_each_prompt
from corsa_plugins.data.reading import read_requests
from corsa_plugins.data.requests import EditRequest, RequestError
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
    found = conflict_set(edited, CANDIDATES, ConflictPlan(kind, 8, hard_share=0.25, seed=1))
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


def test_no_request_is_in_two_sets_or_an_edit_in_force(edited: AlphaEditor) -> None:
    candidates = [*CANDIDATES, *REQUESTS[:2], REQUESTS[0].model_copy(update={"target_new": "Bern"})]
    first = conflict_set(edited, candidates, ConflictPlan("preserved", 6, seed=0))
    second = conflict_set(edited, candidates, ConflictPlan("prior", 6, seed=0), exclude=first.requests)
    assert not {r.prompt for r in first.requests} & {r.prompt for r in second.requests}
    in_force = {(r.prompt, r.target_new) for r in REQUESTS[:2]}
    assert not in_force & {(r.prompt, r.target_new) for r in (*first.requests, *second.requests)}
    with pytest.raises(RequestError, match="a set of 8 from 7 candidates"):
        conflict_set(edited, CANDIDATES, ConflictPlan("prior", 8), exclude=CANDIDATES[:5])


def test_the_table_and_the_figures_say_the_same(edited: AlphaEditor) -> None:
    found = conflict_set(edited, CANDIDATES, ConflictPlan("prior", 8, hard_share=0.25))
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


def test_the_seed_decides_the_draw_and_the_order(edited: AlphaEditor) -> None:
    sets = [conflict_set(edited, CANDIDATES, ConflictPlan("prior", 5, seed=seed)) for seed in (0, 0, 1)]
    assert sets[0] == sets[1]
    assert sets[0].requests != sets[2].requests
    everything = conflict_set(edited, CANDIDATES, ConflictPlan("prior", len(CANDIDATES), hard_share=1))
    assert sorted(str(r.case_id) for r in everything.requests) == sorted(str(r.case_id) for r in CANDIDATES)
    assert all(everything.hard)
    assert not any(conflict_set(edited, CANDIDATES, ConflictPlan("preserved", 3, hard_share=0)).hard)


def test_without_earlier_edits_there_is_no_figure_for_them(llama_bench: Bench) -> None:
    found = conflict_set(llama_bench.editor(QUICK), CANDIDATES[:3], ConflictPlan("preserved", 2))
    assert found.means["prior_conflict"] is None
    assert found.means["preserved_conflict"] is not None


def test_refusals(edited: AlphaEditor, llama_bench: Bench) -> None:
    kind: Any = "odd"
    with pytest.raises(SettingError, match="preserved, prior, inconsistent"):
        conflict_set(edited, CANDIDATES, ConflictPlan(kind, 2))
    with pytest.raises(SettingError, match="--residual-at goes with inconsistent"):
        ConflictPlan("prior", 2, residual_at=1)
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(SettingError, match="hard_share is"):
            conflict_set(edited, CANDIDATES, ConflictPlan("prior", 2, hard_share=share))
    for place in (0, 3):
        with pytest.raises(SettingError, match=f"residual_at is {place}: it must be 1 to 2"):
            conflict_set(edited, CANDIDATES, ConflictPlan("inconsistent", 2, residual_at=place))
    for size in (0, 13):
        with pytest.raises(RequestError, match=f"a set of {size} from 12 candidates"):
            conflict_set(edited, CANDIDATES, ConflictPlan("prior", size))
    with pytest.raises(RequestError, match="has no subject"):
        conflict_set(edited, [EditRequest(prompt="a", target_new="b")], ConflictPlan("prior", 1))
    edited.revert_all()
    with pytest.raises(SettingError, match="no edits in force"):
        conflict_set(edited, CANDIDATES, ConflictPlan("prior", 2))
    edited.settings = replace(QUICK, layers=(0,))
    edited.edit(REQUESTS[:1], answers=False)
    edited.settings = replace(QUICK, layers=(1,))
    with pytest.raises(SettingError, match="no edit in force changed layers 1"):
        conflict_set(edited, CANDIDATES, ConflictPlan("prior", 2))


def test_a_set_is_saved_with_its_figures_and_can_be_read_back(edited: AlphaEditor, tmp_path: Path) -> None:
    twice = [*CANDIDATES, CANDIDATES[0].model_copy(update={"target_new": "Bern", "prompt": f" {CANDIDATES[0].prompt}"})]
    candidates = first_of_each_prompt(twice)
    assert candidates == CANDIDATES
    built = conflict_set(edited, candidates, ConflictPlan("preserved", 6, hard_share=0.5))
    figures = built.save(tmp_path / "new" / "hard.jsonl")
    assert tuple(read_requests(tmp_path / "new" / "hard.jsonl")) == built.requests
    assert figures == tmp_path / "new" / "hard.figures.jsonl"
    rows = [json.loads(line) for line in figures.read_text(encoding="utf-8").splitlines()]
    assert [row.pop("hard") for row in rows] == list(built.hard)
    assert [row.pop("name") for row in rows] == [request.name() for request in built.requests]
    assert tuple(rows) == built.figures
