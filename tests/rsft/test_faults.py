"""Failures and interruptions survived: the weights are those that were promised, bit for bit."""

from __future__ import annotations

import copy
import dataclasses
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from corsa_plugins.rsft import NonFiniteLossError, RSFTSettings, rsft
from tests.support.training import REQUESTS, changed, pairs, state


def sigint() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


@contextmanager
def failing(model: nn.Module, module: nn.Module, fault: Callable[[], None], at: int) -> Iterator[None]:
    """The fault strikes in the middle of the forward pass number ``at`` through a module."""
    count = 0

    def strike(*args: object) -> None:
        nonlocal count
        count += 1
        if count == at:
            fault()

    hook = module.register_forward_hook(strike)
    try:
        yield
    finally:
        hook.remove()


LONG = RSFTSettings(layer=1, epochs=4, steps=3, loss_threshold=0, optimizer="sgd", learning_rate=0.01)
SECOND = 4 + 9 + 4  # passes: the check of reuse, an epoch of three samples of three steps, and into the next


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("fault", "error"), [(sigint, KeyboardInterrupt), (out_of_memory, RuntimeError)])
@pytest.mark.parametrize("at", [1, 5, SECOND])
def test_a_failure_restores_the_weights(
    base: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    dtype: torch.dtype,
    fault: Callable[[], None],
    error: type[BaseException],
    at: int,
) -> None:
    before = state(base.to(dtype))
    flags = [parameter.requires_grad for parameter in base.parameters()]
    with failing(base, base.transformer.h[2], fault, at), pytest.raises(error) as caught:
        rsft(base, tiny_tokenizer, REQUESTS, LONG)
    assert not changed(base, before)
    assert [parameter.requires_grad for parameter in base.parameters()] == flags
    assert all("forward" not in vars(block) for block in base.transformer.h)
    assert "as they were before" in caught.value.__notes__[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("merge", [{}, {"weight": 0.5, "density": 0.5}], ids=["whole", "merged"])
def test_an_interruption_keeps_the_finished_epochs(
    base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype, merge: dict[str, float]
) -> None:
    base.to(dtype)
    twin = copy.deepcopy(base)
    settings = dataclasses.replace(LONG, on_interrupt="keep", **merge)
    with failing(base, base.transformer.h[2], sigint, SECOND):
        report = rsft(base, tiny_tokenizer, REQUESTS, settings)
    expected = rsft(twin, tiny_tokenizer, REQUESTS, dataclasses.replace(settings, epochs=1))
    assert not changed(base, state(twin))
    assert report == dataclasses.replace(expected, interrupted=True)


def test_an_error_keeps_the_finished_epochs_and_is_raised(
    base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    twin, early = copy.deepcopy(base), copy.deepcopy(base)
    settings = dataclasses.replace(LONG, on_interrupt="keep")
    with failing(base, base.transformer.h[2], out_of_memory, SECOND), pytest.raises(RuntimeError) as caught:
        rsft(base, tiny_tokenizer, REQUESTS, settings)
    assert "after 1 finished epochs" in caught.value.__notes__[0]
    before = state(early)
    with failing(early, early.transformer.h[2], sigint, 5):
        assert rsft(early, tiny_tokenizer, REQUESTS, settings).epochs == 0
    assert not changed(early, before)
    rsft(twin, tiny_tokenizer, REQUESTS, dataclasses.replace(settings, epochs=1))
    assert not changed(base, state(twin))


@pytest.mark.parametrize("on_interrupt", ["restore", "keep"])
def test_a_nan_loss_names_its_request(
    base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, on_interrupt: str
) -> None:
    """An embedding that only one request uses is NaN."""
    sequences = [set(question + answer[:-1]) for question, answer in pairs(tiny_tokenizer)]
    alone = min(sequences[1] - sequences[0] - sequences[2])
    with torch.no_grad():
        base.lm_head.weight = nn.Parameter(base.lm_head.weight.clone())  # untied: else all logits are NaN
        base.transformer.wte.weight[alone] = float("nan")
    before = state(base)
    with pytest.raises(NonFiniteLossError, match=r"case 'anna'.*the loss is nan"):
        rsft(base, tiny_tokenizer, REQUESTS, RSFTSettings(layer=1, on_interrupt=on_interrupt))
    assert not changed(base, before)
