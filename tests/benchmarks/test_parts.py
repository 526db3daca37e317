"""The parts of AlphaEdit+ one by one: what is compared, on which requests, and how it is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.parts import ALPHAEDIT, Scenario, methods, parsed, settings_of, table
from corsa_plugins.alphaedit import AlphaEditor, AlphaEditSettings
from corsa_plugins.alphaedit.auto import Choice
from corsa_plugins.data.requests import EditRequest
from tests.fixtures.alphaedit import REQUESTS, SETTINGS, Bench

POOL = [
    EditRequest(
        prompt=f"The home of Person {number} is",
        subject=f"Person {number}",
        target_old=f"town {number % 7}",
        target_new=f"town {(number + 1) % 7}",
        validation_prompts=(f"Where does Person {number} live?",),
    )
    for number in range(40)
]


def no_editor() -> AlphaEditor:
    raise AssertionError("these scenarios are drawn without a model")


def test_each_method_has_its_one_part_and_alphaedit_plus_has_all() -> None:
    settings = AlphaEditSettings(layers=(1,))
    by_name = methods(settings)
    plain = by_name[ALPHAEDIT]
    assert plain == settings.alphaedit()
    assert by_name["AlphaEdit+"] == settings
    assert replace(by_name["search alone"], search=None) == plain
    assert replace(by_name["smoothing alone"], smoothing=None) == plain
    assert replace(by_name["conflict weights alone"], conflict_weights=False, prior_weight=1.0) == plain
    assert replace(by_name["search, threshold 1.4e-4"], search=None) == plain
    printed = by_name["smoothing as in the paper"]
    assert replace(printed, smoothing=None, validation_score=plain.validation_score) == plain
    assert len({str(each) for each in by_name.values()}) == 7


def test_settings_are_chosen_where_that_is_asked_for() -> None:
    asked: list[tuple[int, ...]] = []

    def choose(layers: Sequence[int]) -> Choice:
        asked.append(tuple(layers))
        return Choice(AlphaEditSettings(layers=(5,)), "because", plain=AlphaEditSettings(layers=(6,)).alphaedit())

    files = ["--model", "m", "--rounds", "r", "--watched", "w", "--statistics", "s"]
    assert settings_of(parsed([*files, "--settings", "auto"]), choose)["AlphaEdit+"].layers == (5,)
    assert settings_of(parsed([*files, "--settings", "auto", "--layers", "3-4"]), choose)[ALPHAEDIT].layers == (6,)
    assert settings_of(parsed([*files, "--layers", "3-4"]), choose)[ALPHAEDIT].layers == (3, 4)
    assert asked == [(), (3, 4)]


def test_files_are_named_or_an_atlas_that_has_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert parsed(["--atlas", "folder"]).atlas == Path("folder")
    for wrong in (["--model", "m", "--rounds", "r", "--watched", "w"], ["--atlas", "folder", "--model", "m"], []):
        with pytest.raises(SystemExit):
            parsed(wrong)
        assert "name --model, --rounds, --watched and --statistics, or --atlas" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "sizes"), [("20", [20]), ("3x10", [10, 10, 10])])
def test_a_scenario_is_drawn_by_its_seed_alone(name: str, sizes: list[int]) -> None:
    drawn = Scenario.draw(name, POOL, 3, no_editor)
    assert [len(batch) for batch in drawn.batches] == sizes
    assert drawn.asked == [request for batch in drawn.batches for request in batch]
    assert len({request.prompt for request in drawn.asked}) == sum(sizes)
    assert drawn == Scenario.draw(name, POOL, 3, no_editor) != Scenario.draw(name, POOL, 4, no_editor)
    assert not drawn.hard


def test_a_fifth_of_the_second_batch_asks_for_edits_of_the_first_again() -> None:
    drawn = Scenario.draw("again20", POOL, 0, no_editor)
    first, latest = drawn.batches
    before = {request.subject: request.target_new for request in first}
    assert (len(first), len(latest), len(drawn.hard)) == (20, 20, 4)
    assert drawn.asked == latest
    for request in drawn.hard:
        assert request in latest
        assert request.target_new != before[request.subject]
        assert request.prompt not in {each.prompt for each in POOL}
    assert not {request.subject for request in latest if request not in drawn.hard} & set(before)


@pytest.mark.parametrize("kind", ["preserved", "inconsistent"])
def test_the_hard_ones_are_found_behind_the_first_batch_which_is_taken_back(llama_bench: Bench, kind: str) -> None:
    pool = [
        request.model_copy(update={"prompt": f"{lead}{request.prompt}"})
        for lead in ("", "Now: ")
        for request in REQUESTS
    ]
    weights = {name: value.clone() for name, value in llama_bench.model.state_dict().items()}
    size = len(pool) // 2
    drawn = Scenario.draw(f"{kind}{size}", pool, 0, lambda: llama_bench.editor(SETTINGS))
    first, latest = drawn.batches
    assert (len(first), len(latest), len(drawn.hard)) == (size, size, round(size / 5))
    assert {request.prompt for request in latest} == {r.prompt for r in pool} - {r.prompt for r in first}
    assert all(torch.equal(value, weights[name]) for name, value in llama_bench.model.state_dict().items())
    editor = llama_bench.editor(SETTINGS)
    editor.edit(first, answers=False)
    if kind == "preserved":
        figures = [row["subspace_conflict"] for row in editor.diagnose(latest).rows()]
    else:
        figures = editor.residuals(latest, len(SETTINGS.layers))
    assert drawn.hard == [latest[figures.index(max(figures))]]


def test_scenarios_that_cannot_be_drawn_are_refused() -> None:
    for name in ("fifty", "3x", "x20", "50", "again21"):
        with pytest.raises(SystemExit, match=f"scenario {name}"):
            Scenario.draw(name, POOL, 0, no_editor)


def test_differences_are_paired_by_seed() -> None:
    common = {"scenario": "20", "generality": 0.5, "neighbours": 1.0, "stays protected": None, "smoothed": 0}
    rows = [
        {**common, "method": method, "seed": seed, "efficacy": level + gain, "watched": 0.9}
        for method, gain in ((ALPHAEDIT, 0.0), ("search alone", 0.1))
        for seed, level in ((0, 0.2), (1, 0.8))
    ]
    cells = [list(column.cells) for column in table(rows).columns]
    assert cells[0] == ["20", ALPHAEDIT, "search alone"]
    assert cells[1][2].endswith("(+10.0 ± 0.0)")
    assert cells[2][2] == ""  # nothing is asked for again
