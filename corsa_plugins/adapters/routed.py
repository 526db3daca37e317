"""A change of a mixture's routed experts: a product for each, which PEFT keeps as a LoRA of one parameter.

An edit of routed experts is one update of their weights side by side, Delta = left [right_1; ...; right_E]^T, with a
column for each edit in every expert. Of an expert that few of the edits' tokens took, right_e has few ranks: what it
needs is found in float64, and no more than the rounding of the factors is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from corsa_plugins.adapters.compression import KeyMoment, compress, needed_rank
from corsa_plugins.adapters.low_rank import LowRank

__all__ = ["CompressedExperts", "RoutedLowRank", "compress_experts"]


@dataclass(frozen=True)
class RoutedLowRank:
    """Delta_e = left_e right_e^T of E experts.

    Attributes:
        parts: By expert; left_e (d_out, r_e), right_e (width, r_e), and r_e may be 0.
    """

    parts: tuple[LowRank, ...]

    @property
    def rank(self) -> int:
        """The largest r_e."""
        return max(part.rank for part in self.parts)

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """PEFT's two factors: A (E rank, width), expert after expert, and B (d_out, rank E), in which the experts of
        a rank lie beside each other."""
        parts = [part.balanced().padded(rank) for part in self.parts]
        right = torch.cat([part.right.T for part in parts])
        left = torch.stack([part.left for part in parts], dim=2)
        return right, left.reshape(len(left), -1)

    @classmethod
    def of_factors(cls, first: Tensor, second: Tensor, rank: int) -> RoutedLowRank:
        """The inverse of :meth:`factors`, without what is padded."""
        experts = len(first) // rank
        lefts = second.reshape(len(second), rank, experts).unbind(2)
        return cls(
            tuple(
                LowRank(left, right.T).without_zeros() for left, right in zip(lefts, first.chunk(experts), strict=True)
            )
        )

    def side_by_side(self) -> LowRank:
        """The same change as one of the experts' weights side by side, (d_out, E width), a column for each rank."""
        width = len(self.parts[0].right)
        right = self.parts[0].right.new_zeros(width * len(self.parts), sum(part.rank for part in self.parts))
        start = 0
        for expert, part in enumerate(self.parts):
            right[expert * width : (expert + 1) * width, start : start + part.rank] = part.right
            start += part.rank
        return LowRank(torch.cat([part.left for part in self.parts], 1), right)


class CompressedExperts(NamedTuple):
    """A change of experts by fewer ranks.

    Attributes:
        update: In float32 or wider.
        needed: The most ranks that an expert needs.
        loss: As of :class:`~corsa_plugins.adapters.compression.Compressed`, of the expert that loses most.
    """

    update: RoutedLowRank
    needed: int
    loss: float


@torch.no_grad()
def compress_experts(update: LowRank, experts: int, rank: int | None, moment: KeyMoment) -> CompressedExperts:
    """An update of experts side by side as one of each: by what ranks it needs, or the best by at most ``rank``.

    Args:
        update: Delta, (d_out, E width).
        experts: E.
        rank: The most of an expert; ``None``: nothing is left out.
        moment: C, ``preserved`` as one matrix for each expert, (E, width, width), and ``edits`` side by side, (E width,
            N). Products of two experts' keys do not count.
    """
    parts, needed, losses = [], [], []
    for expert, right in enumerate(update.right.chunk(experts)):
        own = LowRank(update.left, right).without_zeros()
        needed.append(needed_rank(own, _rounding(own)) if own.rank else 0)
        less = rank is not None and rank < needed[-1]
        weighed = _of_expert(moment, expert, experts) if less else None
        compressed = compress(own, rank if less and rank else needed[-1], weighed)
        parts.append(compressed.update)
        losses.append(compressed.loss if less else 0.0)
    return CompressedExperts(RoutedLowRank(tuple(parts)), max(needed), max(losses))


def _rounding(update: LowRank) -> float:
    """How far Delta is off, at most, for the rounding of its factors to float32."""
    return 2.0**-24 * float((update.left.double().norm(dim=0) * update.right.double().norm(dim=0)).sum())


def _of_expert(moment: KeyMoment, expert: int, experts: int) -> KeyMoment:
    preserved = None if moment.preserved is None else moment.preserved[expert]
    return KeyMoment(preserved, None if moment.edits is None else moment.edits.chunk(experts)[expert])
