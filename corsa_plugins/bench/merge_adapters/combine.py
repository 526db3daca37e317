"""LoRA adapters on one base combined into one by PEFT, and how far that is from the weighted sum of their weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from corsa_plugins.errors import SettingError
from corsa_plugins.model.borrowing import attribute
from corsa_plugins.model.placement import give_memory

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["COMBINATIONS", "MERGED", "Combination", "combine_adapters", "largest_rank"]

COMBINATIONS = ("cat", "svd", "linear", "ties", "ties_svd", "dare_ties", "dare_linear", "dare_ties_svd",
                "dare_linear_svd", "magnitude_prune", "magnitude_prune_svd")  # fmt: skip
"""PEFT's ways to combine adapters. ``cat`` is exact, and the default: its rank is the sum of all ranks."""

EXACT = 1e-4
"""How far from the weighted sum ``cat`` may be, relative to its norm: rounding in float32 stays far under it."""

MERGED = "merged"
"""What the combination is called in the model."""


class Combination(NamedTuple):
    """How an adapter that was combined compares with those it is made of. D is B A times the scaling.

    Attributes:
        distance: ``||D_merged - sum_i w_i D_i|| / ||sum_i w_i D_i||`` over all layers together.
        size: ``||D_merged|| / sqrt(sum_i ||w_i D_i||^2)`` likewise: about 1 where the adapters have little in common, 0
            where nothing is left of them.
    """

    distance: float
    size: float


@torch.no_grad()
def combine_adapters(
    model: PeftModel,
    names: Sequence[str],
    weights: Sequence[float],
    *,
    combination: str = "cat",
    density: float | None = None,
) -> Combination:
    """Add the adapter ``"merged"`` to ``model``, and compare its weight change with the weighted sum of the others'.

    Raises:
        SettingError: PEFT refuses to combine these adapters, or ``cat``, which is exact, is not.
    """
    settings: dict[str, Any] = {"combination_type": combination} | ({} if density is None else {"density": density})
    inner: Any = model.base_model
    inject = inner.inject_adapter

    def inject_with_memory(*given: Any, **named: Any) -> None:
        inject(*given, **named)
        give_memory(model)  # of offloaded layers PEFT puts the new factors on meta too, where nothing can be written

    try:
        with attribute(inner, "inject_adapter", inject_with_memory):
            inner.add_weighted_adapter(list(names), [float(weight) for weight in weights], MERGED, **settings)
    except (ValueError, NotImplementedError) as refusal:
        raise SettingError(f"PEFT cannot combine these adapters by {combination!r}: {refusal}") from refusal
    model.set_adapter(MERGED)
    difference = total = size = parts = 0.0
    for layer in _lora_layers(model):
        wanted, got = torch.zeros(2, 1, dtype=torch.float64)
        for name, weight in zip(names, weights, strict=True):
            if name in layer.scaling:
                part = weight * layer.get_delta_weight(name).double().cpu()
                wanted = wanted + part
                parts += float(part.square().sum())
        if MERGED in layer.scaling:
            got = layer.get_delta_weight(MERGED).double().cpu()
        difference += float((got - wanted).square().sum())
        total += float(wanted.square().sum())
        size += float(torch.as_tensor(got).square().sum())
    distance = math.sqrt(difference / total) if total else math.sqrt(difference)
    if combination == "cat" and not distance <= EXACT:
        raise SettingError(
            f"the merged adapter is {distance:.1e} away from the weighted sum of the adapters' weights (relative): an "
            "adapter of theirs is not plain LoRA, or is damaged"
        )
    return Combination(distance, math.sqrt(size / parts) if parts else 0.0)


def largest_rank(model: PeftModel) -> int:
    """The largest rank in the combination, over the layers."""
    return max(layer.r[MERGED] for layer in _lora_layers(model) if MERGED in layer.r)


def _lora_layers(model: PeftModel) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "lora_A") and hasattr(module, "get_delta_weight")]
