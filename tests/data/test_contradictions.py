"""Contradicting requests: found, as rounds of update, or the first alone."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from corsa_plugins.data.contradictions import check_requests, first_of_contradictions, split_rounds
from corsa_plugins.data.requests import EditRequest

requests = st.lists(
    st.builds(EditRequest, prompt=st.sampled_from(["A is", "B is", "B  is "]), target_new=st.sampled_from("xyz")),
    max_size=10,
)


@settings(max_examples=50, deadline=None)
@given(items=requests)
def test_rounds_hold_everything_once_in_order_and_without_contradiction(items):
    rounds = split_rounds(items)
    assert sorted(map(repr, items)) == sorted(repr(request) for part in rounds for request in part)
    for part in rounds:
        assert part
        assert not check_requests(part).contradictions
        assert part == [request for request in items if any(request is one for one in part)]


@settings(max_examples=50, deadline=None)
@given(items=requests)
def test_the_rounds_of_one_prompt_tell_its_history(items):
    for prompt in ("A is", "B is"):
        history = [r.target_new for r in items if " ".join(r.prompt.split()) == prompt]
        told = [r.target_new for part in split_rounds(items) for r in part if " ".join(r.prompt.split()) == prompt]
        assert told == history
        rounds = [{r.target_new for r in part if " ".join(r.prompt.split()) == prompt} for part in split_rounds(items)]
        assert all(now != after for now, after in pairwise(filter(None, rounds)))


@settings(max_examples=50, deadline=None)
@given(items=requests)
def test_the_first_of_contradictions_stays(items):
    kept, left_out = first_of_contradictions(items)
    assert len(kept) + len(left_out) == len(items)
    assert not check_requests(kept).contradictions
    assert kept[:1] == items[:1]
    if not check_requests(items).contradictions:
        assert kept == items


def test_the_reason_names_both():
    items = [
        EditRequest(prompt="A is", target_new="x", case_id=1),
        EditRequest(prompt="A is", target_new="y", case_id="2b"),
    ]
    (line,) = first_of_contradictions(items)[1]
    assert all(part in line for part in ("'2b'", "'A is'", "'y'", "'x'", "case 1"))


class TestChecks:
    def test_duplicates_and_contradictions_are_told_apart(self):
        def request(prompt, target):
            return EditRequest(prompt=prompt, target_new=target)

        issues = check_requests(
            [
                request("A  is", "x"),
                request("B is", "y"),
                request("A is ", "x"),
                request("B is", "z"),
                request("a is", "q"),
            ]
        )
        assert [(d.indices, d.targets) for d in issues.duplicates] == [((0, 2), ("x",))]
        assert [(c.indices, c.targets) for c in issues.contradictions] == [((1, 3), ("y", "z"))]

    def test_nothing_found_is_false(self):
        assert not check_requests([EditRequest(prompt="A is", target_new="x")])
