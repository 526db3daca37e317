"""Work that is left out, and that leaving it out changes nothing."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from corsa_plugins.rsft import RSFTSettings, rsft
from tests.support.training import FLOAT32_NORMS, FLOAT64, REQUESTS, changed, family, flat, gpt2, pairs, ran, state


@pytest.mark.parametrize("name", ["gpt2", "gptj", "gpt_neox", "gemma2"])
def test_leaving_out_work_changes_nothing(name: str, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = family(name, len(tiny_tokenizer)).double()
    settings = RSFTSettings(epochs=2, steps=3, layer=2, optimizer="sgd", learning_rate=0.05)
    results = {}
    for reuse, head in [(False, False), (True, False), (False, True), (True, True)]:
        edited = copy.deepcopy(model)
        both = dataclasses.replace(settings, reuse_prefix=reuse, head_on_answers=head)
        report = rsft(edited, tiny_tokenizer, REQUESTS, both)
        results[reuse, head] = flat(edited.parameters()), report.steps
    plain, steps = results.pop((False, False))
    assert steps > 0
    moved = (plain - flat(model.parameters())).norm()
    tolerance = FLOAT32_NORMS if name == "gemma2" else FLOAT64
    for found, taken in results.values():
        assert taken == steps
        assert (found - plain).norm() < tolerance * moved


def test_frozen_blocks_run_once_per_sample_and_the_head_on_answers_only(
    base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    frozen = [ran(base.transformer.h[0].mlp), ran(base.transformer.h[1].mlp)]
    trained, head = ran(base.transformer.h[2].mlp), ran(base.lm_head)
    report = rsft(base, tiny_tokenizer, REQUESTS, RSFTSettings(epochs=3, layer=2, loss_threshold=0))
    assert [len(shapes) for shapes in frozen] == [len(REQUESTS)] * 2
    assert len(trained) > report.steps == 3 * len(REQUESTS) * 6
    assert {shape[1] for shape in head} == {len(answer) for _, answer in pairs(tiny_tokenizer)}


@pytest.mark.parametrize("room", [0, 1])
def test_the_memory_bound_holds(base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, room: int) -> None:
    """Samples without room run once per visit, and the result is the same."""
    twin = copy.deepcopy(base)
    question, answer = pairs(tiny_tokenizer)[0]
    size = (len(question) + len(answer) - 1) * 32 * 4
    frozen = ran(base.transformer.h[0].mlp)
    settings = RSFTSettings(epochs=3, layer=2, loss_threshold=0, prefix_cache_gib=room * size / 2**30)
    rsft(base, tiny_tokenizer, REQUESTS, settings)
    rsft(twin, tiny_tokenizer, REQUESTS, dataclasses.replace(settings, prefix_cache_gib=1.0))
    assert not changed(base, state(twin))
    check = 2 - room  # the first sample is run before training; the last one too, and is gone when its turn comes
    rest = len(REQUESTS) - room
    assert len(frozen) == room + check + rest * 3 + rest  # three epochs and the final losses


class Leaking(nn.Module):
    """A block that also uses what the FFN of the first block put out: not all it reads is from the block below."""

    def __init__(self, block: nn.Module, first: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.leak: Tensor | float = 0.0
        first.register_forward_hook(self.catch)

    def catch(self, module: nn.Module, args: object, output: Tensor) -> None:
        self.leak = output[:, -1:]

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.block(hidden + self.leak, *args, **kwargs)


def test_a_model_that_bypasses_its_blocks_is_noticed(
    tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    models = [gpt2(len(tiny_tokenizer)).double() for _ in range(2)]
    for model in models:
        model.transformer.h[2] = Leaking(model.transformer.h[2], model.transformer.h[0].mlp)
    plain = RSFTSettings(
        modules=("transformer.h.2.block.mlp",), epochs=2, steps=2, learning_rate=0.05, reuse_prefix=False
    )
    rsft(models[0], tiny_tokenizer, REQUESTS, plain)
    assert "frozen blocks" not in caplog.text
    rsft(models[1], tiny_tokenizer, REQUESTS, dataclasses.replace(plain, reuse_prefix=True))
    assert "frozen blocks are not run again" in caplog.text
    assert torch.allclose(flat(models[0].parameters()), flat(models[1].parameters()), atol=1e-12)


class Overwriting(nn.Module):
    """A block that works in the memory of what it is given."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        hidden[..., 0] += 1.0
        return self.block(hidden, *args, **kwargs)


@pytest.mark.parametrize("cache", [0.0, 1.0])
def test_a_block_that_overwrites_its_input_is_noticed(
    tiny_tokenizer: PreTrainedTokenizerFast, cache: float, caplog: pytest.LogCaptureFixture
) -> None:
    models = [gpt2(len(tiny_tokenizer)).double() for _ in range(2)]
    for model in models:
        model.transformer.h[2] = Overwriting(model.transformer.h[2])
    settings = RSFTSettings(modules=["transformer.h.2.block.mlp"], epochs=1, steps=3, prefix_cache_gib=cache)
    rsft(models[0], tiny_tokenizer, REQUESTS, dataclasses.replace(settings, reuse_prefix=False))
    rsft(models[1], tiny_tokenizer, REQUESTS, settings)
    assert "frozen blocks are not run again" in caplog.text
    assert torch.allclose(flat(models[0].parameters()), flat(models[1].parameters()), atol=1e-12)


def test_a_model_spread_by_accelerate_trains_and_keeps_its_hooks(
    base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    accelerate = pytest.importorskip("accelerate")
    twin = copy.deepcopy(base)
    places = {"transformer.wte": "cpu", "transformer.wpe": "cpu", "transformer.ln_f": "cpu", "lm_head": "cpu"}
    places |= {f"transformer.h.{i}": "cpu" for i in range(3)}
    accelerate.dispatch_model(base, device_map=places, force_hooks=True)
    own = [vars(block)["forward"] for block in base.transformer.h]
    settings = RSFTSettings(layer=2, epochs=2)
    rsft(base, tiny_tokenizer, REQUESTS, settings)
    rsft(twin, tiny_tokenizer, REQUESTS, settings)
    assert not changed(base, state(twin))
    assert [vars(block)["forward"] for block in base.transformer.h] == own
