"""What an edit is asked in the wild."""

from __future__ import annotations

import pytest

from corsa_plugins.bench.wild import FORMS, wild_questions
from corsa_plugins.data.requests import EditRequest

SPAIN = EditRequest(
    prompt="The capital of Spain is",
    target_new="Bangkok",
    target_old="Madrid",
    paraphrases=("What is the capital of Spain?",),
    portability=({"prompt": "The river of Spain's capital is the", "answer": "Chao Phraya", "aliases": ["Menam"]}, "x"),
    reversed=({"prompt": "The city of Bangkok is the capital of", "answer": "Spain"},),
)


def by_form(request):
    asked = {}
    for question in wild_questions([request]):
        asked.setdefault(question.form, []).append(question)
    return asked


def test_every_form_asks_what_it_says():
    asked = by_form(SPAIN)
    assert list(asked) == [form.name for form in FORMS]
    assert [(q.prompt, q.right) for q in asked["prompt"]] == [("The capital of Spain is", ("Bangkok",))]
    assert [q.prompt for q in asked["reworded"]] == ["What is the capital of Spain?"]
    assert asked["conversation"][0].conversation
    assert not asked["prompt"][0].conversation
    assert [(q.prompt, q.denied) for q in asked["negated"]] == [("The capital of Spain is not", True)]
    assert [q.right for q in asked["reversed"]] == [("Spain",)]
    assert [q.right for q in asked["two hops"]] == [("Chao Phraya", "Menam")]  # a probe without an answer is not asked


def test_only_claims_tell_an_answer():
    """What is to be answered freely has no token of the answer in it."""
    for form, questions in by_form(SPAIN).items():
        told = [question.prompt for question in questions if "Bangkok" in question.prompt]
        assert bool(told) == (form in ("yes or no", "true or false", "reversed"))


def test_who_says_yes_to_everything_is_right_about_half():
    asked = by_form(SPAIN)
    assert [(q.right, q.wrong) for q in asked["yes or no"]] == [(("yes",), ("no",)), (("no",), ("yes",))]
    assert [q.right[0] for q in asked["true or false"]] == ["true", "false", "false"]
    without = SPAIN.model_copy(update={"target_old": None})
    assert [q.right[0] for q in by_form(without)["true or false"]] == ["true", "false"]


@pytest.mark.parametrize(
    ("prompt", "denied"),
    [
        ("The capitals of Spain were ", ["The capitals of Spain were not"]),
        ("Anna plays the", ["It is not true that Anna plays the"]),
        ("Who plays the flute?", []),
        ("Answer:", []),
    ],
)
def test_a_statement_is_denied_and_a_question_is_not(prompt, denied):
    asked = by_form(EditRequest(prompt=prompt, target_new="flute"))
    assert [question.prompt for question in asked.get("negated", [])] == denied
