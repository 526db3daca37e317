"""Weights with updates in them: W0 + sum of left right^T, summed in float64 and rounded once.

A quantised weight is never written to: the updates lie beside it, side by side, as the LoRA adapter that they are
(:mod:`corsa_plugins.model.branch`). What is said of a linear map's weight here is said of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from corsa_plugins.errors import SettingError
from corsa_plugins.model.architecture import LinearMap
from corsa_plugins.model.branch import Branch, branch_of, put_branch
from corsa_plugins.model.identity import checksum, tensors_digest
from corsa_plugins.model.quantised import stored_parts

__all__ = [
    "Factors",
    "Held",
    "LayerUpdate",
    "Site",
    "holds_finite",
    "is_original_of",
    "mark_of",
    "original_of",
    "put_back",
    "take",
    "write_weight",
]

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
        original: (d_out, d_in), or what :func:`original_of` gave.
        updates: To add, as products.
        dense: To add, as they are, (d_out, d_in) float64 each.

    Raises:
        SettingError: The weight is quantised, and an update is no product.
    """
    if linear.quantised:
        _write_beside(linear, updates, dense)
        return
    if not updates and not dense:
        linear.write(original)
        return
    device = linear.parameter.device
    left = _joined([update.left for update in updates], linear.d_out).to(device)
    right = _joined([update.right for update in updates], linear.d_in).to(device, torch.float64)
    height = max(1, CHUNK // linear.d_in)
    for start in range(0, linear.d_out, height):
        rows = slice(start, start + height)
        total = original[rows].to(device).double() + left[rows].double() @ right.T
        for matrix in dense:
            total += matrix[rows].to(device)
        linear.write(total, rows)


def _joined(parts: Sequence[Tensor], height: int) -> Tensor:
    return torch.cat(list(parts), dim=1) if parts else torch.zeros(height, 0)


def _write_beside(linear: LinearMap, updates: Sequence[Factors], dense: Sequence[Tensor]) -> None:
    if dense:
        raise SettingError(
            f"{linear.name} is quantised: what is put beside its weight is a product of two factors, and what RECT "
            "leaves of an update is none; edit with alphaedit+, or load the model in bfloat16 or float32"
        )
    device = next(iter(stored_parts(linear.module).values())).device
    sides = (
        _joined([update.left for update in updates], linear.d_out),
        _joined([update.right for update in updates], linear.d_in),
    )
    put_branch(linear.module, Branch(*(side.to(device, copy=True) for side in sides)))


Held = Tensor | Branch | None
"""What a linear map has, to put back: a copy of its weight, or what lies beside it."""


def take(linear: LinearMap, device: str | None = None) -> Held:
    """A copy of the weight; of a quantised one, what lies beside it, which is replaced and never written to.

    Args:
        linear: Whose weight.
        device: For the copy; by default where the weight is.
    """
    return branch_of(linear.module) if linear.quantised else linear.weight.detach().to(device, copy=True)


@torch.no_grad()
def put_back(linear: LinearMap, held: Held) -> None:
    """Have again what :func:`take` gave, bit for bit."""
    if isinstance(held, Tensor):
        linear.write(held)
    else:
        put_branch(linear.module, held)


def original_of(linear: LinearMap) -> Tensor:
    """W0 to keep, in main memory; of a quantised weight, which stays where it is, its shape alone: (d_out, d_in, 0)."""
    if linear.quantised:
        return torch.empty(linear.d_out, linear.d_in, 0, dtype=torch.uint8)
    return linear.weight.detach().to("cpu", copy=True).contiguous()


def is_original_of(original: Tensor, linear: LinearMap) -> bool:
    """Whether W0 is of this shape and precision; or, if it is of a quantised weight, whether this is one too."""
    if linear.quantised or original.dim() == 3:
        return linear.quantised and original.shape == (linear.d_out, linear.d_in, 0)
    return original.shape == (linear.d_out, linear.d_in) and linear.parameter.dtype == original.dtype


def mark_of(linear: LinearMap) -> str:
    """A checksum of the weight, or of all that a quantised one is stored as and what lies beside it."""
    if not linear.quantised:
        return checksum(linear.weight)
    beside = branch_of(linear.module)
    parts = {} if beside is None else {f"beside.{name}": side for name, side in beside._asdict().items()}
    return tensors_digest(stored_parts(linear.module) | parts)


def holds_finite(linear: LinearMap) -> bool:
    """Whether there is neither NaN nor infinity in the weight, or in what lies beside a quantised one."""
    if not linear.quantised:
        return bool(linear.parameter.isfinite().all())
    beside = branch_of(linear.module)
    return beside is None or all(bool(side.isfinite().all()) for side in beside)
