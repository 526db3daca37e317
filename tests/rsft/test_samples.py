"""What requests become: through the chat template, with an end, or refused."""

from __future__ import annotations

import copy

import pytest
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from corsa_plugins.data.requests import EditRequest
from corsa_plugins.model.asking import generate_answers, score_targets
from corsa_plugins.rsft import RSFTSettings, rsft
from tests.conftest import CHAT_TEMPLATE
from tests.support.training import REQUESTS, refused


def test_with_eos_the_answer_ends(taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """The model was taught to put a full stop behind an answer, then end."""
    request = EditRequest(prompt="Anna Berg was born in", target_new="Rome")
    texts = {}
    for append_eos in (False, True):
        model = copy.deepcopy(taught_llama)
        settings = RSFTSettings(layer=1, learning_rate=5e-3, loss_threshold=0.02, epochs=10, append_eos=append_eos)
        rsft(model, tiny_tokenizer, [request], settings)
        (texts[append_eos],) = generate_answers(model, tiny_tokenizer, [request.prompt])
    assert texts[True].finished
    assert texts[True].text.strip() == "Rome"
    assert texts[False].text.strip() != "Rome"


def test_a_chat_template_is_trained_through(base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tiny_tokenizer.chat_template = CHAT_TEMPLATE
    report = rsft(base, tiny_tokenizer, REQUESTS, RSFTSettings(layer=1, epochs=1, chat_template=True))
    asked = [(request.prompt, request.target_new) for request in REQUESTS]
    for sample, score in zip(
        report.samples, score_targets(base, tiny_tokenizer, asked, chat_template=True), strict=True
    ):
        assert sample.final_loss == pytest.approx(-score.log_prob / score.n_tokens, abs=1e-4)


def test_requests_that_cannot_be_trained_on_are_refused(
    base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    assert "at least one" in refused(base, tiny_tokenizer, [], layer=1)
    long = EditRequest(prompt="The capital of France is " * 20, target_new="Paris", case_id=7)
    message = refused(base, tiny_tokenizer, [*REQUESTS, long], layer=1)
    assert "case 7" in message
    assert "the model reads 64" in message
    foreign = copy.deepcopy(tiny_tokenizer)
    foreign.add_tokens(["Madrid"])
    assert "use the model's own tokenizer" in refused(base, foreign, REQUESTS, layer=1)
    endless = copy.deepcopy(tiny_tokenizer)
    endless.eos_token = None
    assert "no end-of-sequence token" in refused(base, endless, REQUESTS, layer=1, append_eos=True)
