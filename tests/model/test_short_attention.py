"""Which attention short rows get, and that it is the same function of them."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from corsa_plugins.model.short_attention import LONGEST, short_attention


def model_of(dtype: torch.dtype) -> LlamaForCausalLM:
    config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    return LlamaForCausalLM(config).to(dtype)


def written_out() -> bool:
    return not torch.backends.cuda.flash_sdp_enabled()


def test_short_rows_in_half_precision_with_a_gradient_are_written_out_and_nothing_else() -> None:
    half, full = model_of(torch.bfloat16), model_of(torch.float32)
    with short_attention(half, LONGEST):
        assert written_out()
    with torch.autocast("cpu", dtype=torch.bfloat16), short_attention(full, 12):
        assert written_out()
    with short_attention(half, LONGEST + 1):
        assert not written_out()
    with short_attention(full, 12):
        assert not written_out()
    with torch.no_grad(), short_attention(half, 12):
        assert not written_out()


def test_torch_chooses_again_after_an_error() -> None:
    def fail() -> None:
        with short_attention(model_of(torch.bfloat16), 12):
            raise RuntimeError("within")

    with pytest.raises(RuntimeError, match="within"):
        fail()
    assert not written_out()


@pytest.mark.parametrize("masked", [True, False])
def test_its_gradients_are_as_near_to_the_exact_ones_as_those_of_fused_attention(masked: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    drawn = [torch.randn(3, 2, 20, 16, generator=draw).bfloat16() for _ in range(4)]
    mask = torch.ones(20, 20, dtype=torch.bool).tril().expand(3, 1, 20, 20) if masked else None

    def gradients(dtype: torch.dtype, short: bool) -> Tensor:
        given = [each.to(dtype).requires_grad_() for each in drawn[:3]]
        with short_attention(model_of(dtype), 20) if short else nullcontext():
            out = F.scaled_dot_product_attention(*given, attn_mask=mask, is_causal=not masked)
        return torch.stack(torch.autograd.grad(out, given, drawn[3].to(dtype))).double()

    exact = gradients(torch.float64, short=False)
    fused, short = (gradients(torch.bfloat16, each) - exact for each in (False, True))
    assert 0 < short.norm() < 1.5 * fused.norm() < 0.02 * exact.norm()
