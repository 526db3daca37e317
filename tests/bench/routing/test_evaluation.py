"""A question goes to the adapter that is chosen, and is answered by that adapter alone."""

from __future__ import annotations

import importlib

import pytest

from corsa_plugins.bench.routing.evaluation import evaluate_routed
from corsa_plugins.errors import SettingError
from corsa_plugins.model.asking import generate_answers
from tests.support.routing import PARTS, Fixed, alone, assert_same, run


def test_with_the_true_choice_each_group_is_answered_by_its_adapter(adapters, tiny_tokenizer):
    by_capitals, by_people = alone(adapters, tiny_tokenizer, "capitals"), alone(adapters, tiny_tokenizer, "people")
    assert by_capitals[0].edit.output != by_people[0].edit.output, "the adapters say the same: nothing is tested"
    found = run(adapters, tiny_tokenizer)
    assert found.accuracy[:2] == (1, 1)
    assert [record.index for record in found.evaluation.records] == [0, 1, 2]
    for record, expected in zip(found.evaluation.records, [*by_capitals[:2], by_people[2]], strict=True):
        assert_same(record.edit, expected.edit)


def test_every_prompt_is_routed_by_itself(adapters, tiny_tokenizer):
    by = [alone(adapters, tiny_tokenizer, "capitals"), alone(adapters, tiny_tokenizer, "people")]
    choose = lambda question: int(question.startswith("W") or "Spain" in question)  # noqa: E731
    found = run(adapters, tiny_tokenizer, Fixed(choose))
    for index, record in enumerate(found.evaluation.records):
        assert_same(record.edit, by[0][index].edit)
        for number, answer in enumerate(record.paraphrases):
            assert_same(answer, by[1][index].paraphrases[number])
        for field in ("neighborhood", "portability"):
            for number, answer in enumerate(getattr(record, field)):
                assert_same(answer, getattr(by[1][index], field)[number])
    # of the edit prompts and paraphrases: 2 of 4 for the capitals, 1 of 2 for the people
    assert found.accuracy.mean == 0.5
    assert found.accuracy.n == 3
    assert found.accuracy_of(["prompt"]).mean == pytest.approx(2 / 3)
    assert found.accuracy_of(["prompt"], part=1).mean == 0
    for route in found.routes:
        assert route.chosen == choose(route.prompt)
        assert route.true == int(route.index == 2)


def test_a_single_adapter_may_get_everything_and_all_is_as_it_was(adapters, tiny_tokenizer):
    adapters.set_adapter("people")
    flags = [parameter.requires_grad for parameter in adapters.parameters()]
    found = run(adapters, tiny_tokenizer, Fixed(lambda question: 0))
    assert found.accuracy.mean == pytest.approx(4 / 6)
    assert adapters.active_adapters == ["people"]
    assert adapters.active_adapter == "people"
    assert [parameter.requires_grad for parameter in adapters.parameters()] == flags
    with pytest.raises(RuntimeError):
        run(adapters, tiny_tokenizer, Fixed(lambda question: (_ for _ in ()).throw(RuntimeError())))
    assert adapters.active_adapters == ["people"]


def test_what_cannot_be_evaluated_is_named(adapters, tiny_tokenizer, taught_llama):
    with pytest.raises(SettingError, match="no adapters"):
        evaluate_routed(taught_llama, tiny_tokenizer, PARTS, ["a", "b"])
    with pytest.raises(SettingError, match=r"the model lacks \['b'\]"):
        evaluate_routed(adapters, tiny_tokenizer, PARTS, ["people", "b"])
    with pytest.raises(SettingError, match="2 parts and adapters"):
        evaluate_routed(adapters, tiny_tokenizer, PARTS, ["people"])
    with pytest.raises(SettingError, match="untouched: not for several adapters"):
        run(adapters, tiny_tokenizer, untouched=["x"])
    with pytest.raises(SettingError, match="nothing to evaluate"):
        evaluate_routed(adapters, tiny_tokenizer, [[], []], ["people", "capitals"])


def test_a_prompt_is_asked_of_the_adapter_it_is_sent_to_alone(adapters, tiny_tokenizer, monkeypatch, tmp_path):
    """Probes scattered over adapters do not multiply the cost; and a stopped evaluation goes on where it was."""
    asked = []
    ask = generate_answers

    def count(model, tokenizer, prompts, **options):
        asked.append(len(prompts))
        return ask(model, tokenizer, prompts, **options)

    monkeypatch.setattr(importlib.import_module("corsa_plugins.bench.evaluation.evaluate"), "generate_answers", count)
    choose = lambda question: int("Spain" in question)  # noqa: E731
    whole = run(adapters, tiny_tokenizer, Fixed(choose), checkpoint=tmp_path)
    # of the first adapter six prompts and a portability probe; of the second the probe that two requests share, and
    # their edit prompts, which every record has
    assert sum(asked) == 7 + 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter-1.jsonl", "adapter-2.jsonl"]
    asked.clear()
    again = run(adapters, tiny_tokenizer, Fixed(choose), checkpoint=tmp_path)
    assert not asked
    assert again == whole
