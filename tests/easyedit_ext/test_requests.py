"""EasyEdit's dictionaries become edit requests, and nothing to test with comes along."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corsa_plugins.data.requests import EditRequest, RequestError
from easyedit_ext.requests import to_requests
from tests.easyedit_ext.conftest import REQUESTS

WORDS = st.text(alphabet="abcdefgh", min_size=1, max_size=8)


def test_a_dictionary_as_easyedit_makes_it() -> None:
    first, second, third = to_requests(REQUESTS)
    assert first == EditRequest(
        prompt="The capital of France is", target_new="Oslo", subject="France", target_old="Paris"
    )
    assert second.target_old is None
    assert third == EditRequest(prompt="The capital of Italy is", target_new="Madrid", subject="Italy")


@settings(deadline=None, max_examples=30)
@given(subject=WORDS, before=WORDS, after=WORDS, target=WORDS, spaces=st.integers(0, 2))
def test_a_template_and_its_text_are_the_same_request(
    subject: str, before: str, after: str, target: str, spaces: int
) -> None:
    template = {"prompt": f"{before.upper()} {{}} {after.upper()}", "target_new": " " * spaces + target}
    written = {"prompt": f"{before.upper()} {subject} {after.upper()}", "target_new": target}
    assert to_requests([{**template, "subject": subject}]) == to_requests([{**written, "subject": subject}])


def test_braces_that_are_text_stay() -> None:
    (request,) = to_requests([{"prompt": "In Python, dict() is {} and", "target_new": "empty", "subject": "Python"}])
    assert request.prompt == "In Python, dict() is {} and"


@pytest.mark.parametrize("truth", [None, "", " ", "<|endoftext|>", "Oslo", " Oslo", ["Paris"], 3])
def test_no_ground_truth_is_no_obstacle(truth: Any) -> None:
    (request,) = to_requests([{**REQUESTS[0], "ground_truth": truth}])
    assert request.target_old is None


def test_every_bad_request_is_named() -> None:
    bad: list[Any] = [
        {"prompt": "The capital of France is", "target_new": "", "subject": "France"},
        REQUESTS[0],
        {"prompt": "The capital of France is", "target_new": "Oslo", "subject": "Spain"},
        {"prompt": "The capital of France is", "subject": "France"},
        {"prompt": None, "target_new": "Oslo"},
        {"prompt": "The capital of France is", "target_new": ["Oslo"]},
        "The capital of France is Oslo",
    ]
    with pytest.raises(RequestError) as caught:
        to_requests(bad)
    problems = caught.value.problems
    assert [int(problem.split()[1]) for problem in problems] == [0, 2, 3, 4, 5, 6]
    for problem, field in zip(problems, ("target_new", "subject", "target_new", "prompt", "target_new"), strict=False):
        assert field in problem
    with pytest.raises(RequestError, match="no requests"):
        to_requests([])


def test_validation_prompts_are_the_users_and_never_test_prompts() -> None:
    (request,) = to_requests([{**REQUESTS[0], "validation_prompts": ["France is governed from"]}])
    assert request.validation_prompts == ("France is governed from",)
    for test in ("What is the capital of  France?", "The capital of Spain is", "Who governs France? Somebody in"):
        with pytest.raises(RequestError, match="test prompt"):
            to_requests([{**REQUESTS[0], "validation_prompts": [test]}])
