"""U and Sigma of Algorithm 1: the eigenvectors of a second moment, in memory or in a file, read a block at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from corsa_plugins.errors import CorsaError

__all__ = ["Eigenbasis", "FileVectors", "MemoryVectors", "MomentError", "Vectors", "check_moment", "decompose"]

logger = logging.getLogger(__name__)

BLOCK = 512  # eigenvectors read at once: 56 MiB in float64 at a width of 14336
_EXACT_WIDTH = 4096
_FLOAT32_LIMIT = 1e3


class MomentError(CorsaError, ValueError):
    """A matrix that is no second moment, or no projector: not square, not finite, not symmetric, not positive."""


class Vectors(Protocol):
    """Eigenvectors as the rows of a (d, d) matrix, in ascending order of their eigenvalues."""

    def rows(self, start: int, stop: int) -> Tensor:
        """Eigenvectors ``start`` to ``stop``: (stop - start, d), on the CPU unless they are kept elsewhere."""
        ...


@dataclass(frozen=True)
class MemoryVectors:
    """Eigenvectors in memory: ``matrix`` (d, d), one per row."""

    matrix: Tensor

    def rows(self, start: int, stop: int) -> Tensor:
        return self.matrix[start:stop]


@dataclass(frozen=True)
class FileVectors:
    """Eigenvectors in a safetensors file, one per row of the tensor ``key`` from row ``first`` on; what is asked for is
    read, no more."""

    path: Path
    key: str
    first: int = 0

    def rows(self, start: int, stop: int) -> Tensor:
        with safe_open(self.path, framework="pt") as file:
            return file.get_slice(self.key)[self.first + start : self.first + stop]


@dataclass(frozen=True)
class Eigenbasis:
    """Eigenvalues and eigenvectors of a second moment.

    Attributes:
        values: (d,) float64, ascending, none below zero.
        vectors: The eigenvectors in the same order.
    """

    values: Tensor
    vectors: Vectors

    def blocks(self, stop: int) -> Iterator[tuple[slice, Tensor]]:
        """The first ``stop`` eigenvectors, some hundred rows at a time, each with their numbers."""
        for start in range(0, stop, BLOCK):
            numbers = slice(start, min(start + BLOCK, stop))
            yield numbers, self.vectors.rows(numbers.start, numbers.stop)

    def coordinates(self, keys: Tensor, n: int) -> Tensor:
        """The first n rows of U^T K, (n, N), of keys (d, N) in float64; on their device."""
        result = keys.new_empty(n, keys.shape[1])
        for numbers, rows in self.blocks(n):
            result[numbers] = rows.to(keys) @ keys
        return result

    def combine(self, coefficients: Tensor) -> Tensor:
        """U[:, :m] C, (d, N), of coefficients C (m, N) in float64; on their device."""
        result = coefficients.new_zeros(len(self.values), coefficients.shape[1])
        for numbers, rows in self.blocks(len(coefficients)):
            result += rows.to(coefficients).mT @ coefficients[numbers]
        return result


def check_moment(moment: Tensor, what: str = "the second moment") -> None:
    """Refuse what cannot be a second moment.

    Args:
        moment: To be (d, d), finite and symmetric (to 1e-4 of its largest element), its diagonal not negative.
        what: The subject of the message.

    Raises:
        MomentError: It is not.
    """
    if moment.dim() != 2 or moment.shape[0] != moment.shape[1] or not moment.numel():
        raise MomentError(f"{what} is {' x '.join(map(str, moment.shape))}: it should be a square matrix")
    if not moment.is_floating_point():
        raise MomentError(f"{what} is of {moment.dtype}: it should be of floating point")
    largest = 0.0
    asymmetry = 0.0
    for start in range(0, len(moment), BLOCK):
        rows, columns = moment[start : start + BLOCK], moment[:, start : start + BLOCK].mT
        if not rows.isfinite().all():
            raise MomentError(f"{what} holds NaN or infinity: collect it again")
        largest = max(largest, float(rows.abs().max()))
        asymmetry = max(asymmetry, float((rows - columns).abs().max()))
    if asymmetry > 1e-4 * largest:
        raise MomentError(
            f"{what} is not symmetric: elements differ from their mirror images by up to {asymmetry:.3g}, "
            f"the largest is {largest:.3g}; it is damaged, or no second moment"
        )
    if float(moment.diagonal().min()) < 0:
        raise MomentError(f"{what} has a negative diagonal: it is damaged, or no second moment")


def decompose(moment: Tensor, what: str = "the second moment", *, dtype: torch.dtype | None = None) -> Eigenbasis:
    """Eigenvalues and eigenvectors of a second moment: O(d^3) time, some three matrices of memory.

    Computed on the device of ``moment``, or on the CPU if that fails. Rounding leaves eigenvalues of zero a little
    above or below: negative ones become zero.

    Args:
        moment: E[k k^T], (d, d).
        what: The subject of messages.
        dtype: Of the computation. By default float64 up to a width of 4096; beyond it float32, with eigenvalues exact
            to some 1e-6 of the largest, unless that one exceeds 1000, where the error would reach the thresholds
            that are in use (0.02).

    Raises:
        MomentError: It is not a second moment; also if an eigenvalue is clearly negative.
    """
    check_moment(moment, what)
    if dtype is None:
        exact = len(moment) <= _EXACT_WIDTH or (moment.dtype == torch.float64 and _largest(moment) > _FLOAT32_LIMIT)
        dtype = torch.float64 if exact else torch.float32
    values, columns = _eigh(moment.detach().to(dtype), what)
    values = values.to("cpu", torch.float64)
    if float(values[0]) < -1e-3 * float(values[-1]):
        raise MomentError(f"{what} has the eigenvalue {float(values[0]):.3g}: a second moment has none below zero")
    return Eigenbasis(values.clamp(min=0), MemoryVectors(columns.mT.contiguous().cpu()))


def _eigh(matrix: Tensor, what: str) -> tuple[Tensor, Tensor]:
    try:
        values, columns = torch.linalg.eigh(matrix)
    except (torch.OutOfMemoryError, torch.linalg.LinAlgError, NotImplementedError) as error:
        if matrix.device.type == "cpu":
            raise MomentError(f"the eigenvectors of {what} cannot be computed: {error}") from error
        logger.info("eigenvectors of %s on the CPU: %s", what, error)
        return _eigh(matrix.cpu(), what)
    return values, columns


def _largest(moment: Tensor) -> float:
    """The largest eigenvalue, about: a lower bound that 30 power iterations bring close, in O(d^2) each."""
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(len(moment), generator=generator).to(moment)
    norm = 0.0
    for _ in range(30):
        vector = moment @ (vector / vector.norm().clamp(min=torch.finfo(moment.dtype).tiny))
        norm = float(vector.norm())
    return norm
