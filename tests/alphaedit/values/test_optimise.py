"""The optimisation is the published one, for each request as if it were alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.alphaedit.values.optimise import LossScale
from corsa_plugins.alphaedit.values.search import NonFiniteValueError, ValueSettings, find_values
from corsa_plugins.data.requests import EditRequest
from tests.support.families import CONTEXTS, REQUESTS, family
from tests.support.values import CLAMPED, EARLY, KNOWN, MOST_PROBABLE, TAUGHT, compare


@pytest.mark.parametrize("reuse", [True, False])
def test_is_the_published_optimisation_in_float64(tiny_tokenizer: PreTrainedTokenizerFast, reuse: bool) -> None:
    model = family("gpt2", len(tiny_tokenizer)).double()
    searched = compare(model, tiny_tokenizer, 0, replace(CLAMPED, reuse_prefix=reuse), 1e-9)
    norms = (searched.vectors - searched.initial).norm(dim=0) / searched.initial.norm(dim=0)
    assert torch.allclose(norms, torch.full_like(norms, 0.1))
    searched = compare(model, tiny_tokenizer, 1, replace(EARLY, reuse_prefix=reuse), 1e-9)
    steps = searched.steps.tolist()
    assert len(set(steps)) > 1
    assert min(steps) < EARLY.steps - 1
    assert max(steps) == EARLY.steps - 1


def test_it_ends_once_the_target_is_the_most_probable_in_every_context(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = taught_llama.double()
    easy = EditRequest(prompt="The capital of France is", target_new="Paris", subject="France")
    steps = {}
    for number in (2, 3, 5):
        settings = replace(MOST_PROBABLE, stop_most_probable=number)
        steps[number] = compare(model, tiny_tokenizer, 0, settings, 1e-6, [easy, KNOWN[1]]).steps
        assert max(steps[number].tolist()) < settings.steps - 1, "all of them were stopped"
    assert (steps[2] < steps[3]).all()
    assert (steps[3] < steps[5]).all()
    assert steps[2][0] < steps[2][1], "each when it was its turn"


@pytest.mark.parametrize("reuse", [True, False])
def test_side_by_side_is_one_by_one(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, reuse: bool
) -> None:
    taught_llama.double()  # in float32 rounding depends on the batch, and Adam on the signs of small gradients
    settings = replace(TAUGHT, reuse_prefix=reuse)
    together = find_values(taught_llama, tiny_tokenizer, KNOWN, 0, CONTEXTS, settings)
    assert len(set(together.steps.tolist())) > 1  # some left the batch before others
    for size in (1, 2):
        apart = find_values(taught_llama, tiny_tokenizer, KNOWN, 0, CONTEXTS, replace(settings, batch_size=size))
        moved = (apart.vectors - apart.initial).norm(dim=0)
        assert ((apart.vectors - together.vectors).norm(dim=0) < 1e-4 * moved).all()
        assert apart.steps.tolist() == together.steps.tolist()
    turned = find_values(taught_llama, tiny_tokenizer, KNOWN[::-1], 0, CONTEXTS, settings)
    assert ((turned.vectors.flip(1) - together.vectors).norm(dim=0) < 1e-4 * moved).all()


def test_a_relative_rate_follows_the_scale_of_the_hidden_states(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = family("gpt2", len(tiny_tokenizer)).double()
    h = find_values(model, tiny_tokenizer, REQUESTS, 1, CONTEXTS, ValueSettings(steps=1)).initial
    for number in range(len(REQUESTS)):
        rate = 0.2 * float(h[:, number].norm()) / h.shape[0] ** 0.5
        relative, absolute = (
            find_values(model, tiny_tokenizer, REQUESTS[number : number + 1], 1, CONTEXTS, settings).vectors
            for settings in (
                ValueSettings(steps=5, lr=0.2, lr_unit="relative", clamp=9.0),
                ValueSettings(steps=5, lr=rate, clamp=9.0),
            )
        )
        assert torch.allclose(relative, absolute, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_optimises_in_float32(tiny_tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype) -> None:
    model = family("llama3", len(tiny_tokenizer))
    settings = ValueSettings(steps=8, lr=0.1, clamp=9.0)
    wanted = find_values(model, tiny_tokenizer, REQUESTS, 0, CONTEXTS, settings)
    searched = find_values(model.to(dtype), tiny_tokenizer, REQUESTS, 0, CONTEXTS, settings)
    assert searched.vectors.dtype == torch.float32
    assert torch.allclose(searched.loss, wanted.loss, rtol=0.1)
    assert (
        searched.loss < find_values(model, tiny_tokenizer, REQUESTS, 0, CONTEXTS, ValueSettings(steps=1)).loss
    ).all()


def test_nan_names_the_request(tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """Only the tokens of one request's subject are damaged."""
    with torch.no_grad():
        token = tiny_tokenizer(" Italy", add_special_tokens=False).input_ids[-1]
        tiny_llama.model.embed_tokens.weight[token] = torch.nan
    with pytest.raises(NonFiniteValueError, match=r"'italy'.*loss of its value vector is nan"):
        find_values(tiny_llama, tiny_tokenizer, REQUESTS, 0, CONTEXTS, CLAMPED)
    searched = find_values(tiny_llama, tiny_tokenizer, REQUESTS[:2], 0, CONTEXTS, CLAMPED)
    assert searched.vectors.isfinite().all()


def test_a_gradient_that_overflows_names_the_request(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_llama.model.layers[1].mlp.register_full_backward_hook(
        lambda module, given, got: tuple(None if part is None else part * torch.inf for part in given)
    )
    with pytest.raises(NonFiniteValueError, match=r"'france'.*gradient of its value vector is nan"):
        find_values(tiny_llama, tiny_tokenizer, REQUESTS[:1], 0, CONTEXTS, CLAMPED)


def test_the_loss_scale_of_float16_gives_way_when_it_overflows() -> None:
    delta = torch.zeros(1, 2, requires_grad=True)
    scale = LossScale(2.0**12)
    totals = ((delta.half() + 1) * torch.tensor([30.0, 1.0]).half()).float().sum(-1)
    assert torch.equal(scale.gradient(totals, delta), torch.tensor([[30.0, 1.0]]))
    assert scale.factor == 2.0**8
