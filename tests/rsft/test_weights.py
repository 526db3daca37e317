"""The weights in training precision, and the second stage, which merges what changed."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from corsa_plugins.merging.deltas import EditedTensor, merge_deltas
from corsa_plugins.model.asking import score_targets
from corsa_plugins.rsft import RSFTSettings, rsft
from tests.support.training import REQUESTS, changed, state


def test_bfloat16_weights_train_in_float32(base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """At a rate at which no single step moves a bfloat16 weight by half of its spacing, many of them do."""
    low = base.to(torch.bfloat16)
    high = copy.deepcopy(low).float()
    settings = RSFTSettings(layer=1, epochs=8, loss_threshold=0, optimizer="sgd", learning_rate=2e-4)
    name = "transformer.h.1.mlp.c_proj.weight"
    start = state(high)[name]
    rsft(low, tiny_tokenizer, REQUESTS, settings)
    rsft(high, tiny_tokenizer, REQUESTS, settings)
    assert low.dtype == torch.bfloat16
    moved = state(high)[name] - start
    error = (state(low)[name].float() - start - moved).norm() / moved.norm()
    rounding = (state(high)[name].bfloat16().float() - state(high)[name]).norm() / moved.norm()
    assert error < rounding + 0.1  # bfloat16 activations account for the rest


def test_the_second_stage_merges_the_change(base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    settings = RSFTSettings(layer=1, epochs=2, learning_rate=0.01)
    before = state(base)
    whole, merged, none = (copy.deepcopy(base) for _ in range(3))
    rsft(whole, tiny_tokenizer, REQUESTS, settings)
    report = rsft(merged, tiny_tokenizer, REQUESTS, dataclasses.replace(settings, weight=0.7, density=0.3))
    rsft(none, tiny_tokenizer, REQUESTS, dataclasses.replace(settings, weight=0.0))
    assert not changed(none, before)
    after = state(whole)
    for name in before:
        expected = merge_deltas(before[name], [EditedTensor(after[name], weight=0.7, density=0.3)])
        assert torch.equal(merged.state_dict()[name], expected)
    share = (merged.transformer.h[1].mlp.c_fc.weight != before["transformer.h.1.mlp.c_fc.weight"]).double().mean()
    assert share == pytest.approx(0.3, abs=0.02)
    # the final losses are of the merged model, the ones before them of the training
    (score,) = score_targets(merged, tiny_tokenizer, [(REQUESTS[0].prompt, REQUESTS[0].target_new)])
    assert report.samples[0].final_loss == pytest.approx(-score.log_prob / score.n_tokens, abs=1e-4)
