"""Eq. 2: decay, small and large gradients, rates that blow up, and modules without a gradient."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from corsa_plugins.rsft import NonFiniteLossError, RSFTSettings, rsft
from tests.support.rsft_oracle import ADAMW, compare
from tests.support.training import FLOAT64, REQUESTS, changed, flat, refused, state


def test_weight_decay_is_decoupled(base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    distance, _, _ = compare(base.double(), tiny_tokenizer, dataclasses.replace(ADAMW, decay=0.3))
    assert distance < FLOAT64


@pytest.mark.parametrize(("factor", "rate"), [(2**-10, 1e5), (32, 1e-4)], ids=["small", "large"])
def test_float16_keeps_small_gradients_and_survives_large_ones(
    base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, factor: float, rate: float
) -> None:
    """Head and norm made small: most of the FFN's gradients are below float16's smallest unless the loss is scaled.
    The norm made large: the scaled ones are beyond its largest."""
    with torch.no_grad():
        base.transformer.ln_f.weight.mul_(factor)
        base.lm_head.weight.mul_(min(factor, 1))
    low = base.half()
    high = copy.deepcopy(low).float()
    settings = RSFTSettings(layer=2, epochs=1, steps=2, loss_threshold=0, optimizer="sgd", learning_rate=rate)
    start = flat(high.transformer.h[2].mlp.parameters())
    rsft(low, tiny_tokenizer, REQUESTS, settings)
    rsft(high, tiny_tokenizer, REQUESTS, settings)
    ours, exact = (flat(model.transformer.h[2].mlp.parameters()) - start for model in (low, high))
    assert (ours - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("epochs", "steps"), [(3, 6), (1, 1)])
@pytest.mark.parametrize("on_interrupt", ["restore", "keep"])
def test_a_rate_that_blows_up_is_named_and_undone(
    base: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    optimizer: str,
    epochs: int,
    steps: int,
    on_interrupt: str,
) -> None:
    before = state(base)
    settings = RSFTSettings(
        layer=1, epochs=epochs, steps=steps, optimizer=optimizer, learning_rate=1e37, on_interrupt=on_interrupt
    )
    with pytest.raises(NonFiniteLossError, match="lower learning_rate"):
        rsft(base, tiny_tokenizer, REQUESTS[:1], settings)
    assert not changed(base, before)


def test_a_module_no_answer_depends_on_is_refused(
    base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    base.add_module("spare", nn.Linear(2, 2))
    assert "no answer depends on these" in refused(base, tiny_tokenizer, REQUESTS, modules=["spare"])
