"""Plans: who is updated when, who is asked when, and which requests still hold."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corsa_plugins.bench.protocols import (
    UpdatePlan,
    UpdateSet,
    cross_set_injection,
    sequential_batches,
    single_update,
    temporal_stream,
)
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError


def requests(count: int) -> list[EditRequest]:
    return [EditRequest(prompt=f"prompt {i}", target_new=f"target {i}") for i in range(count)]


@settings(deadline=None, max_examples=30)
@given(st.data(), st.integers(1, 40))
def test_batches_are_the_requests_in_order_and_of_equal_size_up_to_one(data: st.DataObject, count: int) -> None:
    n = data.draw(st.integers(1, count))
    plan = sequential_batches(requests(count), n)
    assert [request for one in plan.sets for request in one.requests] == requests(count)
    sizes = {len(one.requests) for one in plan.sets}
    assert len(plan.sets) == n
    assert max(sizes) - min(sizes) <= 1


def test_every_protocol_asks_before_right_after_and_after_all() -> None:
    a, b = requests(4)[:2], requests(4)[2:]
    assert single_update(a).evaluated == ((1,), (1,))
    assert cross_set_injection(a, b).evaluated == ((1, 2), (1, 2), (1, 2))
    three = [a[:1], a[1:], b]
    assert temporal_stream(three).evaluated == ((1, 2, 3), (1,), (2,), (1, 2, 3))
    assert temporal_stream(three, every_round=True).evaluated == ((1, 2, 3), (1,), (1, 2), (1, 2, 3))
    assert sequential_batches(requests(4), 2).evaluated == ((1, 2), (1,), (1, 2))


def test_names_of_the_sets_are_the_callers() -> None:
    plan = cross_set_injection(requests(1), requests(2), names=("CounterFact", "MQuAKE"))
    assert [one.name for one in plan.sets] == ["CounterFact", "MQuAKE"]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.sampled_from("xyz"), min_size=1), min_size=1, max_size=5))
def test_a_request_stands_until_its_prompt_gets_another_target(history: list[dict[str, str]]) -> None:
    rounds = [[EditRequest(prompt=f" {p} ", target_new=t) for p, t in one.items()] for one in history]
    plan = temporal_stream(rounds)
    for moment in range(1, len(history) + 1):
        holds: dict[str, str] = {}
        for one in history[:moment]:
            holds |= one
        for update in range(1, moment + 1):
            expected = tuple(holds[prompt] == target for prompt, target in history[update - 1].items())
            assert plan.standing(update, moment) == expected
    assert plan.standing(1) == plan.standing(1, len(history))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sets": ()}, "no updates"),
        ({"sets": ("a", "A!")}, "the name 'a' of an update"),
        ({"sets": ("untouched",)}, "the name 'untouched'"),
        ({"sets": ("--",)}, "the name '--'"),
        ({"sets": ("a", "b"), "evaluated": ((1,), (1, 2))}, "2 moments: 2 updates have 3"),
        ({"sets": ("a", "b"), "evaluated": ((), (2,), (1, 2))}, r"evaluated\[1\]"),
        ({"sets": ("a", "b"), "evaluated": ((), (1,), (2,))}, r"evaluated\[2\] is \(2,\).* 1, 2"),
        ({"sets": ("a",), "evaluated": ((2,), (1,))}, r"evaluated\[0\]"),
        ({"sets": ("a",), "evaluated": ((1, 1), (1,))}, r"evaluated\[0\]"),
    ],
)
def test_plans_that_cannot_be_run_are_refused(arguments: dict[str, Any], message: str) -> None:
    sets = tuple(UpdateSet(name, tuple(requests(1))) for name in arguments["sets"])
    asked = arguments.get("evaluated") or ((), *(tuple(range(1, len(sets) + 1)),) * len(sets))
    with pytest.raises(SettingError, match=message):
        UpdatePlan("plan", sets, asked)


def test_nothing_to_do_is_refused() -> None:
    with pytest.raises(SettingError, match="'B' has no requests"):
        cross_set_injection(requests(1), [])
    with pytest.raises(SettingError, match="no updates"):
        temporal_stream([])
    for n in (0, 3):
        with pytest.raises(SettingError, match=f"{n} batches of 2 requests: give a number from 1 to 2"):
            sequential_batches(requests(2), n)
