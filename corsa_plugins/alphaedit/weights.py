"""Weights with updates in them: W0 + sum of left right^T, summed in float64 and rounded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from corsa_plugins.model.architecture import LinearMap

__all__ = ["Factors", "LayerUpdate", "Site", "write_weight"]

Site = int | str
"""A linear map whose weight is changed: the number of a block for the down map of its FFN, else the module's name."""

CHUNK = 2**24
"""Elements of a weight that are held in float64 at a time: 128 MiB."""


class Factors(Protocol):
    """An update of a weight as a product, ``left @ right.T``."""

    @property
    def left(self) -> Tensor:
        """(d_out, N)."""
        ...

    @property
    def right(self) -> Tensor:
        """(d_in, N)."""
        ...


@dataclass(frozen=True)
class LayerUpdate:
    """What one batch of N edits did to one layer.

    Attributes:
        keys: (d_in, N), the keys with the batch in force: K_p of later edits.
        left: (d_out, N), the residuals, as smoothed.
        right: (d_in, N); the update is ``left @ right.T``.
    """

    keys: Tensor
    left: Tensor
    right: Tensor


@torch.no_grad()
def write_weight(linear: LinearMap, original: Tensor, updates: Sequence[Factors], dense: Sequence[Tensor] = ()) -> None:
    """Put ``original`` + the sum of the updates into a linear map, summed in float64 by blocks of rows.

    Args:
        linear: Whose weight is written.
        original: (d_out, d_in).
        updates: To add, as products.
        dense: To add, as they are, (d_out, d_in) float64 each.
    """
    weight = linear.weight
    if not updates and not dense:
        weight.copy_(original)
        return
    left = _joined([update.left for update in updates], linear.d_out).to(weight.device)
    right = _joined([update.right for update in updates], linear.d_in).to(weight.device, torch.float64)
    height = max(1, CHUNK // linear.d_in)
    for start in range(0, linear.d_out, height):
        rows = slice(start, start + height)
        total = original[rows].to(weight.device).double() + left[rows].double() @ right.T
        for matrix in dense:
            total += matrix[rows].to(weight.device)
        weight[rows] = total.to(weight.dtype)


def _joined(parts: Sequence[Tensor], height: int) -> Tensor:
    return torch.cat(list(parts), dim=1) if parts else torch.zeros(height, 0)
