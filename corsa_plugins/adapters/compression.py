"""A change of a weight by fewer ranks: the best there is for the keys that it will meet.

With C = E[k k^T] of the keys, the expected |(Delta - Delta_r) k|^2 is the squared norm of (Delta - Delta_r) C^(1/2),
and smallest for the truncated singular value decomposition of Delta C^(1/2), mapped back by C^(-1/2). That is
U U^T Delta, U being the first r left singular vectors of Delta C^(1/2): C needs neither a root nor an inverse. And what
a key gives, whether it is one of C's or not, is changed by no more than Delta changes it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from corsa_plugins.adapters.low_rank import LowRank

__all__ = ["Compressed", "KeyMoment", "compress", "needed_rank"]

_FLOOR = 1e-6
_CHUNK = 2**24  # elements of a moment that are held in float64 at a time: 128 MiB


@dataclass(frozen=True)
class KeyMoment:
    """C, the second moment of the keys that a loss is weighed by; with neither part, all directions count alike.

    In directions that no key has, C is a millionth of its mean eigenvalue, so that what lies there has an order too.

    Attributes:
        preserved: E[k k^T] of the keys to preserve, (d_in, d_in).
        edits: The keys of the edits, (d_in, N). Both parts are means, so that they count alike.
    """

    preserved: Tensor | None = None
    edits: Tensor | None = None

    def times(self, right: Tensor) -> Tensor:
        """C right, (d_in, n) float64."""
        right = right.double()
        edits = None if self.edits is None or not self.edits.shape[1] else self.edits.double()
        if self.preserved is None and edits is None:
            return right
        product = right * (_FLOOR * self._trace() / len(right))
        if self.preserved is not None:
            height = max(1, _CHUNK // len(right))
            for start in range(0, len(right), height):
                rows = slice(start, start + height)
                product[rows] += self.preserved[rows].double() @ right
        if edits is not None:
            product += edits @ (edits.T @ right) / edits.shape[1]
        return product

    def _trace(self) -> float:
        preserved = 0.0 if self.preserved is None else float(self.preserved.diagonal().double().sum())
        many = self.edits is not None and self.edits.shape[1]
        return preserved + (
            float(self.edits.double().square().sum()) / many if self.edits is not None and many else 0.0
        )


class Compressed(NamedTuple):
    """A change by fewer ranks.

    Attributes:
        update: In float64.
        loss: Norm of (Delta - Delta_r) C^(1/2), relative to that of Delta C^(1/2).
    """

    update: LowRank
    loss: float


@torch.no_grad()
def compress(update: LowRank, rank: int, moment: KeyMoment | None = None) -> Compressed:
    """The best change of at most ``rank``, in float64: Delta itself where it has no more ranks.

    O((d_out + d_in) n^2 + n^3) for n columns, and a product of C with them.

    Args:
        update: Delta.
        rank: At least 1.
        moment: C.
    """
    if update.rank <= rank:
        return Compressed(update, 0.0)
    basis, values, vectors = _spectrum(update, moment or KeyMoment())
    chosen = basis @ vectors[:, -rank:].flip(1)
    right = update.right.double() @ (update.left.double().T @ chosen)
    total = float(values.sum())
    return Compressed(LowRank(chosen, right), math.sqrt(float(values[:-rank].sum()) / total) if total else 0.0)


@torch.no_grad()
def needed_rank(update: LowRank, tolerance: float) -> int:
    """The smallest rank of a change that is within ``tolerance`` of Delta, in the Frobenius norm; at least 1.

    Singular values below 1e-8 of the largest one are not told from zero.
    """
    _, values, _ = _spectrum(update, KeyMoment())
    tail = values.cumsum(0)  # ascending: what leaving out the first k leaves
    floor = float(values[-1]) * 1e-16 * len(values)
    return max(1, int((tail > max(tolerance**2, floor)).sum()))


def _spectrum(update: LowRank, moment: KeyMoment) -> tuple[Tensor, Tensor, Tensor]:
    """An orthonormal basis Q of left's columns; the squared singular values of Delta C^(1/2), ascending, and its left
    singular vectors in that basis: the eigenvalues and eigenvectors of Q^T Delta C Delta^T Q."""
    basis, triangle = torch.linalg.qr(update.left.double())
    gram = triangle @ (update.right.double().T @ moment.times(update.right)) @ triangle.T
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    return basis, values.clamp_min(0), vectors
