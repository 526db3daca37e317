"""What is known of the preserved keys of one layer, wherever it lies; here from a moment in memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from torch import Tensor

from corsa_plugins.alphaedit.solver.eigenbasis import Eigenbasis, check_moment, decompose
from corsa_plugins.alphaedit.solver.side_by_side import SideBySide
from corsa_plugins.errors import CorsaError

__all__ = ["LayerStatistics", "MomentStatistics", "StatisticsError"]


class StatisticsError(CorsaError, ValueError):
    """Statistics that are damaged, incomplete, or of another model; the message names the file or the layer."""


class LayerStatistics(Protocol):
    """What is known of the preserved keys of one layer, in memory or on disk."""

    @property
    def width(self) -> int:
        """d, the number of features of a key, of all experts together where it has several."""
        ...

    @property
    def taken(self) -> tuple[int, ...]:
        """How many of the tokens took each routed expert; empty where the keys are those of one map."""
        ...

    @property
    def count(self) -> int:
        """Number of keys, that is, tokens."""
        ...

    def moment(self) -> Tensor:
        """E[k k^T], (d, d): the mean over all keys; of E experts (E, d / E, d / E), the blocks on its diagonal."""
        ...

    def sample(self) -> Tensor | None:
        """Some of the keys, (d, S), drawn uniformly; ``None`` if none were kept."""
        ...

    def basis(self) -> Eigenbasis:
        """The eigenvalues and eigenvectors of the moment."""
        ...


@dataclass(frozen=True)
class MomentStatistics:
    """Statistics of one layer from a moment in memory; the eigenvectors are computed when they are first asked for.

    Attributes:
        matrix: E[k k^T], (d, d); of E experts (E, d / E, d / E), see
            :mod:`~corsa_plugins.alphaedit.solver.side_by_side`.
        count: Number of keys it is the mean of.
        keys: A sample of them, (d, S), or ``None``.
        name: Of the layer, for messages.
        taken: How many of the tokens took each expert.

    Raises:
        MomentError: The matrix is no second moment.
        StatisticsError: The sample is of another width.
    """

    matrix: Tensor
    count: int
    keys: Tensor | None = None
    name: str = "the layer"
    taken: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for what, moment in self._moments():
            check_moment(moment, what)
        if self.keys is not None and (self.keys.dim() != 2 or len(self.keys) != self.width):
            raise StatisticsError(
                f"{self.name}: the sample of keys is {' x '.join(map(str, self.keys.shape))}, "
                f"and the second moment {self.width} wide"
            )

    @property
    def width(self) -> int:
        return len(self.matrix) * (self.matrix.shape[-1] if self.matrix.dim() == 3 else 1)

    def moment(self) -> Tensor:
        return self.matrix

    def sample(self) -> Tensor | None:
        return self.keys

    def basis(self) -> Eigenbasis:
        return self._basis

    @cached_property
    def _basis(self) -> Eigenbasis:
        bases = [decompose(moment, what) for what, moment in self._moments()]
        return SideBySide.of(bases) if self.matrix.dim() == 3 else bases[0]

    def _moments(self) -> list[tuple[str, Tensor]]:
        """Of each expert, or the one that there is, with what it is called."""
        if self.matrix.dim() != 3:
            return [(f"the second moment of {self.name}", self.matrix)]
        return [(f"the second moment of {self.name}, expert {i}", moment) for i, moment in enumerate(self.matrix)]
