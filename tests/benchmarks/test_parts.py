"""The parts of AlphaEdit+ one by one: what is compared, on which requests, and how it is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.parts import ALPHAEDIT, Scenario, methods, table
from corsa_plugins.alphaedit import AlphaEditSettings
from corsa_plugins.data.requests import EditRequest

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


@pytest.mark.parametrize(("name", "sizes"), [("20", [20]), ("3x10", [10, 10, 10])])
def test_a_scenario_is_drawn_by_its_seed_alone(name: str, sizes: list[int]) -> None:
    drawn = Scenario.draw(name, POOL, 3)
    assert [len(batch) for batch in drawn.batches] == sizes
    assert drawn.asked == [request for batch in drawn.batches for request in batch]
    assert len({request.prompt for request in drawn.asked}) == sum(sizes)
    assert drawn == Scenario.draw(name, POOL, 3) != Scenario.draw(name, POOL, 4)
    assert not drawn.hard


def test_a_fifth_of_the_second_batch_asks_for_edits_of_the_first_again() -> None:
    drawn = Scenario.draw("again20", POOL, 0)
    first, latest = drawn.batches
    before = {request.subject: request.target_new for request in first}
    assert (len(first), len(latest), len(drawn.hard)) == (20, 20, 4)
    assert drawn.asked == latest
    for request in drawn.hard:
        assert request in latest
        assert request.target_new != before[request.subject]
        assert request.prompt not in {each.prompt for each in POOL}
    assert not {request.subject for request in latest if request not in drawn.hard} & set(before)


def test_scenarios_that_cannot_be_drawn_are_refused() -> None:
    for name in ("fifty", "3x", "x20", "50", "again21"):
        with pytest.raises(SystemExit, match=f"scenario {name}"):
            Scenario.draw(name, POOL, 0)


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
