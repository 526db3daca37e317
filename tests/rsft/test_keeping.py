"""What should stay is held while an FFN is trained."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from corsa_plugins.corsa.keeper import Keeper
from corsa_plugins.corsa.kept import Kept, make_kept
from corsa_plugins.rsft import RSFTSettings, rsft
from corsa_plugins.rsft.loss import AnswerLoss
from corsa_plugins.rsft.samples import make_samples
from tests.support.training import REQUESTS, flat, pairs, state

HELD = RSFTSettings(
    epochs=1, steps=2, loss_threshold=0, layer=1, optimizer="sgd", learning_rate=0.1, keep_weight=3.0, keep_batch_size=4
)


def log_probs(model: PreTrainedModel, kept: Kept) -> Tensor:
    """Over the vocabulary at each held position, one row at a time."""
    prompt, answer = kept.ids
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
    return logits[len(prompt) - 1 : -1]


@pytest.mark.parametrize("tolerance", [1e-6, 1e3])
def test_the_divergence_of_the_steps_prompts_is_added_to_the_loss(
    base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tolerance: float
) -> None:
    """The first step is at the reference, where the divergence pulls nowhere; the second is not."""
    base = base.double()
    kept = make_kept(base, tiny_tokenizer, REQUESTS[:1])
    keeper = Keeper(base, kept, size=4, seed=0)
    before = [log_probs(base, keeper.held[index]).detach() for index in keeper.at(1)]
    twin = copy.deepcopy(base)
    rsft(base, tiny_tokenizer, REQUESTS[:1], RSFTSettings(**{**vars(HELD), "keep_tolerance": tolerance}))

    theta = list(twin.transformer.h[1].mlp.parameters())
    [(question, answer)] = pairs(tiny_tokenizer)[:1]
    labels = torch.tensor([[-100] * len(question) + answer])
    for step in range(2):
        loss = twin(input_ids=torch.tensor([question + answer]), labels=labels).loss
        if step:
            now = [log_probs(twin, keeper.held[index]) for index in keeper.at(1)]
            rows = [(p.exp() * (p - q)).sum(-1) for p, q in zip(before, now, strict=True)]
            kl = torch.cat(rows).mean()
            loss = loss + 3.0 * max(1.0, float(kl.detach()) / tolerance) * kl
        for parameter, gradient in zip(theta, torch.autograd.grad(loss, theta), strict=True):
            parameter.data -= 0.1 * gradient
    assert torch.allclose(flat(base.transformer.h[1].mlp.parameters()), flat(theta), atol=1e-5, rtol=1e-4)


def test_one_pass_gives_the_loss_and_the_penalty_of_two(
    base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    base = base.double()
    keeper = Keeper(base, make_kept(base, tiny_tokenizer, REQUESTS[:2]), size=3, seed=0)
    loss = AnswerLoss(base)
    [sample] = make_samples(base, tiny_tokenizer, REQUESTS[:1], RSFTSettings())
    with torch.no_grad():
        base.transformer.h[1].mlp.c_fc.weight.mul_(1.2)  # at the reference the penalty is zero
    hold = {"weight": 2.0, "tolerance": 1e-3}
    beside, logits = loss.beside(sample, keeper.rows(4))
    together, apart = keeper.penalty_of(logits, 4, **hold), keeper.penalty(base, 4, **hold)
    assert apart > 1e-3
    assert torch.allclose(together, apart, rtol=1e-9)
    assert torch.allclose(beside, loss(sample), rtol=1e-9)
    assert not torch.allclose(apart, keeper.penalty(base, 5, **hold)), "another step holds other prompts"


def test_what_is_held_moves_less_and_what_moved_is_said(
    base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    kept = make_kept(base, tiny_tokenizer, REQUESTS)
    before = [log_probs(base, one).detach() for one in kept]
    drift, changed = [], []
    for weight in (1e-9, 10.0):
        model = copy.deepcopy(base)
        caplog.clear()
        settings = RSFTSettings(**{**vars(HELD), "epochs": 5, "keep_weight": weight})
        with caplog.at_level(logging.WARNING, "corsa_plugins.rsft.train"):
            report = rsft(model, tiny_tokenizer, REQUESTS, settings)
        now = [log_probs(model, one).detach() for one in kept]
        drift.append(sum(float((p.exp() * (p - q)).sum()) for p, q in zip(before, now, strict=True)))
        changed.append(len(report.kept_changed))
        assert report.kept_watched == len(kept) // 5
        assert ("prompts that were watched" in caplog.text) == (10 * changed[-1] > report.kept_watched)
    assert drift[1] < 0.5 * drift[0]
    assert changed[1] <= changed[0]
    assert changed[0] > 0


def test_nothing_is_made_or_said_where_nothing_is_held(
    base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    twin = copy.deepcopy(base)
    plain = RSFTSettings(epochs=2, layer=1)
    report = rsft(base, tiny_tokenizer, REQUESTS, plain)
    assert (report.kept_changed, report.kept_watched) == ((), 0)
    rsft(twin, tiny_tokenizer, REQUESTS, RSFTSettings(epochs=2, layer=1, keep_tolerance=1.0, keep_batch_size=2))
    assert all(torch.equal(value, state(twin)[name]) for name, value in state(base).items())
