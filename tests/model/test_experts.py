"""Experts, shared and routed, and what routes: where they are, and that they are what they are said to be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from corsa_plugins.model.architecture import find_architecture
from tests.model.test_architecture import build
from tests.support.mixtures import COUNT, EXPERT, HIDDEN, INNER, MIXTURES, PLAIN


@pytest.mark.parametrize("family", MIXTURES)
def test_finds_the_experts(family: str) -> None:
    config, experts, shared, routers, transposed = MIXTURES[family]
    parts = find_architecture(build(config()))
    mixture = parts.mixture(1)
    assert mixture is not None
    assert mixture.fused is not None
    name = parts.blocks[1].name
    assert (mixture.count, mixture.fused.count) == (COUNT, COUNT)
    assert mixture.parameters == (f"{name}.{experts}.gate_up_proj", f"{name}.{experts}.down_proj")
    assert mixture.fused.transposed is transposed
    assert mixture.fused.weights.shape == (COUNT, HIDDEN, mixture.fused.d_in)
    assert (mixture.shared.name if mixture.shared is not None else None) == (shared and f"{name}.{shared}")
    assert [router.name for router in mixture.routers] == [f"{name}.{router}" for router in routers]
    if shared is not None:
        assert parts.ffn(1).down.name.startswith(f"{name}.{shared}.")


@pytest.mark.parametrize("family", [name for name in MIXTURES if name != "llama4"])  # which has no list of the taken
def test_what_routes_says_which_experts_are_run(family: str) -> None:
    """The experts' module is given, for every token, as many experts as it takes, by number and by weight."""
    model = build(MIXTURES[family][0]())
    mixture = find_architecture(model).mixture(1)
    assert mixture is not None
    assert mixture.fused is not None
    given: list[Any] = []
    mixture.fused.module.register_forward_pre_hook(lambda _, args: given.append(args))
    model(input_ids=torch.arange(3, 9)[None], use_cache=False)
    hidden, index, weights = given[0]
    assert hidden.shape == (6, HIDDEN)
    assert index.shape == weights.shape == (6, 2)
    assert int(index.max()) < COUNT


def test_blocks_without_experts_have_none() -> None:
    config, *_ = MIXTURES["deepseek_v3"]
    parts = find_architecture(build(config()))
    assert parts.mixture(0) is None
    assert parts.ffn(0).down.d_in == INNER
    assert parts.ffn(1).down.d_in == EXPERT  # the shared expert's
    # a convolution's weight has three axes too
    dense = hf.Lfm2Config(**PLAIN, layer_types=["conv", "full_attention", "conv"])
    parts = find_architecture(build(dense))
    assert all(parts.mixture(layer) is None for layer in range(3))


class Listed(nn.Module):
    """Experts as FFNs in a list, with a linear map that routes, as models with code of their own have them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN, COUNT, bias=False)
        self.experts = nn.ModuleList(self._expert(EXPERT) for _ in range(COUNT))
        self.shared = self._expert(INNER)

    @staticmethod
    def _expert(inner: int) -> nn.Module:
        return nn.Sequential(nn.Linear(HIDDEN, inner), nn.GELU(), nn.Linear(inner, HIDDEN))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.shared(hidden)  # type: ignore[no-any-return]


def test_experts_in_a_list_are_named_one_by_one() -> None:
    model = build(hf.LlamaConfig(**PLAIN))
    model.model.layers[1].mlp = Listed()
    mixture = find_architecture(model).mixture(1)
    assert mixture is not None
    assert mixture.fused is None
    assert [each.down.name for each in mixture.listed] == [f"model.layers.1.mlp.experts.{i}.2" for i in range(COUNT)]
    assert mixture.shared is not None
    assert mixture.shared.name == "model.layers.1.mlp.shared"
    assert [router.name for router in mixture.routers] == ["model.layers.1.mlp.gate"]
