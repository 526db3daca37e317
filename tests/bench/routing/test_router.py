"""What the routers that read descriptions have in common."""

from __future__ import annotations

import pytest
import torch

from corsa_plugins.bench.routing.label import LabelRouter
from corsa_plugins.bench.routing.question import QuestionRouter
from corsa_plugins.errors import SettingError
from corsa_plugins.model.asking import score_targets
from tests.support.routing import DESCRIPTIONS, QUESTIONS


def label_router(model, tokenizer):
    return LabelRouter(model, tokenizer, DESCRIPTIONS, "{descriptions}\n{question}\nCollection:")


def question_router(model, tokenizer):
    return QuestionRouter(model, tokenizer, DESCRIPTIONS)


@pytest.mark.parametrize("make", [label_router, question_router])
def test_the_scores_are_log_probabilities_of_the_base_model(tiny_llama, tiny_tokenizer, make):
    peft = pytest.importorskip("peft")
    questions = list(QUESTIONS)
    plain = make(tiny_llama, tiny_tokenizer)
    pairs = [
        (plain.prompt(question), label) if isinstance(plain, LabelRouter) else (f"{description}\n", question)
        for question in questions
        for label, description in zip("AB", DESCRIPTIONS, strict=True)
    ]
    expected = [score_targets(tiny_llama, tiny_tokenizer, [pair])[0].log_prob for pair in pairs]
    found = [value for row in plain.scores(questions) for value in row]
    assert found == pytest.approx(expected, abs=1e-4)
    assert plain.route(questions) == [int(b > a) for a, b in zip(expected[::2], expected[1::2], strict=True)]
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    model = peft.get_peft_model(tiny_llama, config)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with_adapter = make(model, tiny_tokenizer)
    assert [value for row in with_adapter.scores(questions) for value in row] == pytest.approx(expected, abs=1e-4)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


@pytest.mark.parametrize("router", [LabelRouter, QuestionRouter])
@pytest.mark.parametrize("descriptions", [[], ["a", " "]])
def test_every_adapter_needs_a_description(tiny_llama, tiny_tokenizer, router, descriptions):
    with pytest.raises(SettingError, match="needs a description"):
        router(tiny_llama, tiny_tokenizer, descriptions)


@pytest.mark.parametrize("make", [label_router, question_router])
def test_no_questions_are_no_choices(tiny_llama, tiny_tokenizer, make):
    router = make(tiny_llama, tiny_tokenizer)
    assert router.scores([]) == router.route([]) == []
    assert len(router.labels) == 2
