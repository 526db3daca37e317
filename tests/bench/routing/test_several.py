"""Several adapters in one call are what the single calls give."""

from __future__ import annotations

import importlib

import pytest

from corsa_plugins.bench.routing.several import AdapterPart, ask_adapters, measure_adapters
from corsa_plugins.model.asking import cut_answer, generate_answers
from tests.support.routing import CAPITALS, PARTS, PEOPLE, Fixed, alone, assert_same, run


def choose(question):
    return int(question.startswith("W") or "Spain" in question)


def measure(model, tokenizer, **options):
    parts = [AdapterPart(name.title(), name, part) for name, part in zip(("capitals", "people"), PARTS, strict=True)]
    return measure_adapters(model, tokenizer, parts, Fixed(choose), progress=False, **options)


def test_it_measures_the_true_choice_the_routed_and_the_single_one(adapters, tiny_tokenizer):
    report = measure(adapters, tiny_tokenizer, single="people", max_new_tokens=4)
    assert (report.names, report.sizes) == (["Capitals", "People"], [2, 1])
    assert report.routed.routes == run(adapters, tiny_tokenizer, Fixed(choose)).routes
    for measured, expected in (
        (report.routed.evaluation, run(adapters, tiny_tokenizer, Fixed(choose)).evaluation.records),
        (report.true, run(adapters, tiny_tokenizer).evaluation.records),
        (report.single, alone(adapters, tiny_tokenizer, "people")),
    ):
        for record, other in zip(measured.records, expected, strict=True):
            assert_same(record.edit, other.edit)
    assert measure(adapters, tiny_tokenizer).single is None
    assert report.settings["max_new_tokens"] == 4


def test_all_are_asked_for_answers_of_one_length(adapters, tiny_tokenizer):
    report = measure(adapters, tiny_tokenizer, single="people")
    assert len({evaluation.settings["max_new_tokens"] for evaluation in report.evaluations}) == 1
    assert report.settings["max_new_tokens"] > 16


def test_a_stopped_measurement_goes_on_where_it_was(adapters, tiny_tokenizer, monkeypatch, tmp_path):
    module, calls = importlib.import_module("corsa_plugins.bench.evaluation.evaluate"), []

    def count(*arguments, **options):
        calls.append(arguments)
        return generate_answers(*arguments, **options)

    monkeypatch.setattr(module, "generate_answers", count)
    options = {"single": "people", "max_new_tokens": 4, "checkpoint": tmp_path}
    first = measure(adapters, tiny_tokenizer, **options)
    asked = len(calls)
    assert asked
    assert measure(adapters, tiny_tokenizer, **options) == first
    assert len(calls) == asked


@pytest.mark.parametrize("batch_size", [1, 64])
def test_questions_are_answered_by_the_adapter_that_is_chosen(adapters, tiny_tokenizer, batch_size):
    questions = ["Where was Anna Berg born?", *(request.prompt for request in (*CAPITALS, *PEOPLE))]
    names = ["capitals", "people"]
    answers = ask_adapters(
        adapters, tiny_tokenizer, names, Fixed(choose), questions, max_new_tokens=4, batch_size=batch_size
    )
    assert [answer.question for answer in answers] == questions
    assert [answer.chosen for answer in answers] == [1, 0, 0, 0]
    for answer in answers:
        adapters.set_adapter(names[answer.chosen])
        (expected,) = generate_answers(adapters, tiny_tokenizer, [answer.question], max_new_tokens=4)
        assert answer.text == cut_answer(expected.text, expected.finished)
