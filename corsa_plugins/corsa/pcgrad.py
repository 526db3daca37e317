"""PCGrad for two losses, as a weighted sum of the two gradients (papers/corsa.md, Algorithm 1 and section 3).

Whatever is projected on whatever, the merged gradient stays in the span of the two: it is ``a * g_sft + b * g_dpo``,
and (a, b) depend on the three inner products of the gradients alone. So no projected copy of a gradient is ever made,
and "all LoRA tensors together" means adding up three numbers per tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Gram", "MergeWeights", "PCGradForm", "pcgrad_weights"]

PCGradForm = Literal["sequential", "simultaneous"]

# Squared sine of an angle below which the rounding of float32 gradients, 6e-8 of each entry, is a hundredth of what is
# left after projecting.
_ROUNDING = 1e-10


@dataclass(frozen=True)
class Gram:
    """The inner products of the two task gradients over all tensors together."""

    sft_sft: float
    dpo_dpo: float
    sft_dpo: float

    @classmethod
    def of(cls, sft: Sequence[Tensor], dpo: Sequence[Tensor] | None) -> Gram:
        """Accumulated in float64: Algorithm 1 divides by the norm of a difference of nearly equal vectors when the
        gradients nearly oppose each other, and float32 sums would leave nothing but rounding there."""
        total: Tensor | None = None
        for index, gradient in enumerate(sft):
            g = _fine(gradient)
            h = None if dpo is None else _fine(dpo[index])
            zero = g.new_zeros(())
            part = torch.stack([g @ g, zero if h is None else h @ h, zero if h is None else g @ h])
            # A model split over devices has its adapters on several.
            total = part if total is None else total + part.to(total.device)
        return cls(0.0, 0.0, 0.0) if total is None else cls(*total.tolist())

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the gradients; 0 when either vanishes."""
        scale = sqrt(self.sft_sft) * sqrt(self.dpo_dpo)
        return self.sft_dpo / scale if scale > 0 else 0.0

    @property
    def conflicting(self) -> bool:
        """Whether the gradients oppose each other: g_sft . g_dpo < 0."""
        return self.sft_dpo < 0


@dataclass(frozen=True)
class MergeWeights:
    """The merged gradient is ``sft * g_sft + dpo * g_dpo``."""

    sft: float
    dpo: float


def pcgrad_weights(
    gram: Gram, dpo_weight: float = 1.0, form: PCGradForm = "sequential", eps: float = 1e-12
) -> MergeWeights:
    """Weights of the conflict-reduced direction g_pc.

    Without a conflict it is the plain sum, ``g_sft + dpo_weight * g_dpo``. With one:

    * ``"sequential"`` (Algorithm 1, line 6): g_sft is projected off g_dpo, then g_dpo off the *projected* g_sft, both
      with the inner product taken before either. Where nothing of g_sft is left but rounding, g_dpo stays as it was;
    * ``"simultaneous"`` (section 3, Pi(.;.)): each is projected off the other as it was, so that the projected g_sft is
      orthogonal to g_dpo and the projected g_dpo to g_sft.

    Args:
        gram: inner products of the two gradients.
        dpo_weight: lambda of Eq. 4.
        eps: the algorithm's epsilon, added to the squared norms it divides by.
    """
    if not gram.conflicting:
        return MergeWeights(1.0, dpo_weight)
    # g_sft' = g_sft - p * g_dpo
    p = gram.sft_dpo / (gram.dpo_dpo + eps)
    if form == "simultaneous":
        q = gram.sft_dpo / (gram.sft_sft + eps)
        return MergeWeights(1.0 - dpo_weight * q, dpo_weight - p)
    projected = gram.sft_sft - 2 * p * gram.sft_dpo + p * p * gram.dpo_dpo  # ||g_sft'||^2
    if projected <= _ROUNDING * gram.sft_sft:
        # The gradients oppose each other exactly, but for rounding: what is left of g_sft is noise, and line 6 would
        # divide by its norm and blow it up without bound. Nothing is left to project g_dpo off.
        return MergeWeights(1.0, dpo_weight - p)
    q = gram.sft_dpo / (projected + eps)
    # g_dpo' = g_dpo - q * g_sft', and the sum g_sft' + lambda * g_dpo' collected by gradient
    return MergeWeights(1.0 - dpo_weight * q, dpo_weight * (1.0 + p * q) - p)


def _fine(gradient: Tensor) -> Tensor:
    # MPS has no float64; its float32 is the best there is.
    return gradient.reshape(-1).to(torch.float32 if gradient.device.type == "mps" else torch.float64)
