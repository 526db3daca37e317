"""A change of a linear map's weight as a product, Delta = left right^T."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from corsa_plugins.alphaedit.weights import Factors

__all__ = ["LowRank", "joined"]


@dataclass(frozen=True)
class LowRank:
    """Delta = left right^T, (d_out, d_in).

    Attributes:
        left: (d_out, r).
        right: (d_in, r).
    """

    left: Tensor
    right: Tensor

    @classmethod
    def of(cls, delta: Tensor) -> LowRank:
        """A matrix as a product with the unit matrix of its smaller side, in float64."""
        delta, unit = delta.double(), torch.eye(min(delta.shape), dtype=torch.float64)
        return cls(unit, delta.T) if len(delta) == len(unit) else cls(delta, unit)

    @property
    def rank(self) -> int:
        """r, the number of columns; the rank of Delta may be smaller."""
        return self.left.shape[1]

    def delta(self) -> Tensor:
        """Delta in float64."""
        return self.left.double() @ self.right.double().T

    def balanced(self) -> LowRank:
        """The same product, bit for bit, from columns of about the same norm.

        Columns are scaled by powers of two: what a server rounds to 16 bits neither overflows nor vanishes.
        """
        norms = [part.double().norm(dim=0) for part in (self.left, self.right)]
        usable = (norms[0] > 0) & (norms[1] > 0)
        ratio = torch.where(usable, norms[1] / norms[0].clamp_min(torch.finfo(torch.float64).tiny), torch.ones(()))
        scale = torch.exp2((ratio.log2() / 2).round())
        return LowRank((self.left * scale).to(self.left.dtype), (self.right / scale).to(self.right.dtype))

    def padded(self, rank: int) -> LowRank:
        """The same product with columns of zeros up to ``rank``."""
        missing = rank - self.rank
        left, right = (torch.cat([part, part.new_zeros(len(part), missing)], 1) for part in (self.left, self.right))
        return LowRank(left, right)

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """PEFT's two factors, by ``rank`` columns: A (rank, d_in) and B (d_out, rank)."""
        update = self.balanced().padded(rank)
        return update.right.T, update.left

    def without_zeros(self) -> LowRank:
        """The same product without the columns that give nothing."""
        used = ((self.left != 0).any(0) & (self.right != 0).any(0)).nonzero().flatten()
        return LowRank(self.left[:, used], self.right[:, used])

    def narrowed(self) -> LowRank:
        """The same Delta, in float64, by no more columns than it has rows, or columns; itself where it has no more."""
        return self if self.rank <= min(len(self.left), len(self.right)) else LowRank.of(self.delta())


def joined(updates: Sequence[Factors]) -> LowRank:
    """The sum of updates of one weight: their columns side by side, in their order."""
    return LowRank(*(torch.cat([getattr(update, part) for update in updates], 1) for part in ("left", "right")))
