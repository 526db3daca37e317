"""Parts of knowledge for several adapters, and helpers that ask them."""

from __future__ import annotations

import pytest

from corsa_plugins.bench.evaluation import Record, evaluate
from corsa_plugins.bench.routing.evaluation import RoutedEvaluation, evaluate_routed
from corsa_plugins.data.requests import EditRequest

CAPITALS = [
    EditRequest(
        prompt=f"The capital of {land} is",
        target_new="Oslo",
        target_old="Rome",
        paraphrases=[f"What is the capital of {land}?"],
        neighborhood=[{"prompt": "The capital of Spain is", "answer": "Madrid"}],
    )
    for land in ("France", "Italy")
]
PEOPLE = [
    EditRequest(
        prompt="Anna Berg was born in",
        target_new="Paris",
        target_old="Oslo",
        paraphrases=["Where was Anna Berg born?"],
        portability=["What does Anna Berg play?"],
    )
]
PARTS = [CAPITALS, PEOPLE]
DESCRIPTIONS = ["capital", "Anna Berg"]
QUESTIONS = {
    "The capital of France is": 0,
    "What is the capital of France?": 0,
    "The capital of Italy is": 0,
    "Anna Berg was born in": 1,
    "Where was Anna Berg born?": 1,
}


class Fixed:
    """Sends each question where it is told to."""

    labels = ("1", "2")

    def __init__(self, adapter_of):
        self.adapter_of = adapter_of

    def route(self, questions):
        return [self.adapter_of(question) for question in questions]


def run(model, tokenizer, router=None, **options) -> RoutedEvaluation:
    return evaluate_routed(
        model, tokenizer, PARTS, ["capitals", "people"], router, max_new_tokens=4, progress=False, **options
    )


def alone(model, tokenizer, name) -> tuple[Record, ...]:
    """What one of the adapters answers to all requests."""
    model.set_adapter(name)
    evaluation = evaluate(model, tokenizer, [*CAPITALS, *PEOPLE], max_new_tokens=4, progress=False)
    model.set_adapter("capitals")
    return evaluation.records


def assert_same(answer, other):
    one, two = answer.model_dump(), other.model_dump()
    assert {k: v for k, v in one.items() if not k.startswith("log")} == {
        k: v for k, v in two.items() if not k.startswith("log")
    }
    assert one["prompt"] == two["prompt"]
    for name in one:
        if name.startswith("log") and one[name] is not None:
            assert one[name] == pytest.approx(two[name], abs=1e-3)
