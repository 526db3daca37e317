"""Matrices whose columns are samples: what may go into the linear algebra, and what is refused."""

from __future__ import annotations

import torch
from torch import Tensor

from corsa_plugins.errors import CorsaError

__all__ = ["ColumnsError", "check_columns", "unit_columns"]


class ColumnsError(CorsaError, ValueError):
    """Keys or residuals that cannot be computed with: of the wrong shape, or holding NaN or infinity."""


def check_columns(tensor: Tensor, name: str, rows: int | None = None) -> None:
    """Refuse what is not a matrix of finite numbers.

    Args:
        tensor: (rows, samples).
        name: What the message calls it.
        rows: How many rows it must have; ``None`` for any number.

    Raises:
        ColumnsError: It is something else; for NaN and infinity the message names the columns.
    """
    if tensor.ndim != 2:
        raise ColumnsError(f"{name}: a matrix with a column for each sample is needed, not shape {tuple(tensor.shape)}")
    if rows is not None and tensor.shape[0] != rows:
        raise ColumnsError(f"{name}: {tensor.shape[0]} rows where {rows} are needed; were they collected elsewhere?")
    # Bad values are rare: the sum, which any of them spoils, is looked at before the columns are.
    if not torch.isfinite(tensor.sum()):
        bad = (~torch.isfinite(tensor)).any(dim=0).nonzero().flatten().tolist()
        if bad:
            columns = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
            raise ColumnsError(f"{name}: NaN or infinity in column {columns}, counted from 0; leave these samples out")


def unit_columns(tensor: Tensor, name: str, rows: int | None = None) -> Tensor:
    """The columns in float64, scaled to norm 1; a column of zeros stays one.

    Raises:
        ColumnsError: As for :func:`check_columns`.
    """
    check_columns(tensor, name, rows)
    columns = tensor.to(torch.float64)
    if not columns.shape[0]:
        return columns
    # Squares of very large or very small numbers leave the range of float64; those of numbers up to 1 do not.
    largest = columns.abs().amax(dim=0, keepdim=True)
    columns = columns / torch.where(largest > 0, largest, 1.0)
    norms = columns.norm(dim=0, keepdim=True)
    return columns / torch.where(norms > 0, norms, 1.0)
