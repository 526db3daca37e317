"""What is known of the preserved keys of one layer, wherever it lies; here from a moment in memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from torch import Tensor

from corsa_plugins.alphaedit.solver.eigenbasis import Eigenbasis, check_moment, decompose
from corsa_plugins.errors import CorsaError

__all__ = ["LayerStatistics", "MomentStatistics", "StatisticsError"]


class StatisticsError(CorsaError, ValueError):
    """Statistics that are damaged, incomplete, or of another model; the message names the file or the layer."""


class LayerStatistics(Protocol):
    """What is known of the preserved keys of one layer, in memory or on disk."""

    @property
    def width(self) -> int:
        """d, the number of features of a key."""
        ...

    @property
    def count(self) -> int:
        """Number of keys, that is, tokens."""
        ...

    def moment(self) -> Tensor:
        """E[k k^T], (d, d): the mean over all keys."""
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
        matrix: E[k k^T], (d, d).
        count: Number of keys it is the mean of.
        keys: A sample of them, (d, S), or ``None``.
        name: Of the layer, for messages.

    Raises:
        MomentError: The matrix is no second moment.
        StatisticsError: The sample is of another width.
    """

    matrix: Tensor
    count: int
    keys: Tensor | None = None
    name: str = "the layer"

    def __post_init__(self) -> None:
        check_moment(self.matrix, f"the second moment of {self.name}")
        if self.keys is not None and (self.keys.dim() != 2 or len(self.keys) != self.width):
            raise StatisticsError(
                f"{self.name}: the sample of keys is {' x '.join(map(str, self.keys.shape))}, "
                f"and the second moment {self.width} wide"
            )

    @property
    def width(self) -> int:
        return len(self.matrix)

    def moment(self) -> Tensor:
        return self.matrix

    def sample(self) -> Tensor | None:
        return self.keys

    def basis(self) -> Eigenbasis:
        return self._basis

    @cached_property
    def _basis(self) -> Eigenbasis:
        return decompose(self.matrix, f"the second moment of {self.name}")
