"""The null space of the preserved keys: the directions in which they hardly reach, and edits may write (2.1).

AlphaEdit takes the eigenvectors of the second moment E[k k^T] with eigenvalues under a threshold for the null space.
Here they stay an ordered basis rather than a d x d projector: AlphaEdit+ searches for how many to add, and everything
it needs are the coordinates U^T K of a few keys.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from corsa_plugins.alphaedit.solver.eigenbasis import Eigenbasis, MemoryVectors, MomentError, decompose
from corsa_plugins.errors import CorsaError, SettingError
from corsa_plugins.settings import Positive, Settings

__all__ = ["NullSpace", "NullSpaceError", "NullSpaceRule"]

logger = logging.getLogger(__name__)

By = Literal["threshold", "share", "energy"]


class NullSpaceError(CorsaError, ValueError):
    """A null space without any direction; the message says which rule would give one."""


@dataclass(frozen=True)
class NullSpaceRule(Settings):
    """Which eigenvectors of the second moment, smallest eigenvalues first, make the null space.

    Attributes:
        by: ``"threshold"``: those with eigenvalues under ``value``, as in AlphaEdit; the unit is that of squared keys,
            so it does not carry over between models. ``"share"``: this share of the eigenvectors. ``"energy"``: as many
            as hold at most this share of the trace, that is, of the mean squared norm of the preserved keys.
        value: Positive; a share is at most 1.
    """

    by: By = "threshold"
    value: Positive = 0.02

    def check(self) -> None:
        if self.by != "threshold" and self.value > 1:
            raise self.refused("value", f"for by={self.by!r} it must be over 0 and at most 1")

    def count(self, eigenvalues: Tensor) -> int:
        """How many of the eigenvectors are in the null space; ``eigenvalues`` (d,) ascending."""
        if self.by == "threshold":
            return int((eigenvalues < self.value).sum())
        if self.by == "share":
            return round(self.value * len(eigenvalues))
        energy = eigenvalues.cumsum(0)
        # The sum of all may exceed itself by rounding: a share of 1 keeps everything.
        return int((energy <= self.value * energy[-1] * (1 + 1e-12)).sum())

    def __str__(self) -> str:
        return {
            "threshold": f"eigenvalues under {self.value:g}",
            "share": f"the smallest {100 * self.value:g} % of the eigenvectors",
            "energy": f"the smallest eigenvectors with up to {100 * self.value:g} % of the energy",
        }[self.by]


class NullSpace:
    """An orthonormal basis U (d x d) of the key space; its first ``n_null`` vectors span the null space.

    P = U[:, :n_null] U[:, :n_null]^T is AlphaEdit's projector. It is never formed here: U is read in blocks of columns,
    from memory or from a file, so the work memory is that of a block and of the result.

    Attributes:
        d: Width of the keys.
        n_null: Number of eigenvectors in the null space.
        eigenvalues: (d,) float64, ascending: the mean of (u^T k)^2 over the preserved keys for each vector u of U.
        ordered: Whether the eigenvalues order the vectors beyond the null space. A projector's do not: those are all
            alike, and a search that adds them one by one means nothing.
    """

    def __init__(self, basis: Eigenbasis, n_null: int, *, ordered: bool = True) -> None:
        self.basis = basis
        self.d = len(basis.values)
        if not 0 < n_null <= self.d:
            raise SettingError(f"n_null is {n_null}: the null space has at least one and at most {self.d} dimensions")
        self.n_null = n_null
        self.ordered = ordered

    @property
    def eigenvalues(self) -> Tensor:
        return self.basis.values

    @property
    def share(self) -> float:
        """The share of all eigenvectors that is in the null space."""
        return self.n_null / self.d

    @property
    def energy(self) -> float:
        """The share of the preserved keys' mean squared norm that is in the null space: what P lets through."""
        total = float(self.eigenvalues.sum())
        return float(self.eigenvalues[: self.n_null].sum()) / total if total else 0.0

    def protected(self, grades: Tensor | None = None) -> float | None:
        """The share of the preserved keys' mean squared norm that edits do not reach; ``None`` where it is unknown.

        Args:
            grades: (m,), how far edits may use each of the first m eigenvectors, from 0 to 1; by default those of the
                null space in full.
        """
        total = float(self.eigenvalues.clamp(min=0.0).sum())
        if not self.ordered or not total:
            return None
        reached = self.eigenvalues.clamp(min=0.0)[: self.n_null if grades is None else len(grades)]
        return max(0.0, 1 - float(reached.sum() if grades is None else reached @ grades.to(reached)) / total)

    @classmethod
    def from_basis(cls, basis: Eigenbasis, rule: NullSpaceRule | None = None, what: str = "") -> NullSpace:
        """The null space that ``rule`` (by default AlphaEdit's threshold of 0.02) takes of a basis.

        Args:
            basis: Of the second moment.
            rule: Which eigenvectors.
            what: Whose null space, for messages, for instance ``"layer 4"``.

        Raises:
            NullSpaceError: The rule keeps nothing; the message says what would be kept by others.
            MomentError: The eigenvalues are not numbers.
        """
        rule = rule or NullSpaceRule()
        name = f"the null space of {what}" if what else "the null space"
        values = basis.values
        if not values.isfinite().all():
            raise MomentError(f"{name}: the eigenvalues hold NaN or infinity; collect the statistics again")
        n_null = rule.count(values)
        if n_null == 0:
            raise NullSpaceError(f"{name} is empty with {rule}: {_spectrum(values)}")
        if n_null == len(values):
            logger.warning(
                "%s is everything with %s: nothing is protected from the edits. %s", name, rule, _spectrum(values)
            )
        return cls(basis, n_null)

    @classmethod
    def from_moment(cls, moment: Tensor, rule: NullSpaceRule | None = None, what: str = "") -> NullSpace:
        """The null space of a second moment E[k k^T] (d, d), a mean and not a sum; O(d^3), see :func:`decompose`.

        Raises:
            NullSpaceError: The rule keeps nothing.
            MomentError: This is no second moment.
        """
        basis = decompose(moment, f"the second moment of {what}" if what else "the second moment")
        return cls.from_basis(basis, rule, what)

    @classmethod
    def from_projector(cls, projector: Tensor, what: str = "the projector") -> NullSpace:
        """The null space onto which P (d, d) projects, as in AlphaEdit's ``null_space_project.pt``; O(d^3).

        The second moment is not known then: the "eigenvalues" are 0 in the null space and 1 beyond, and ``ordered`` is
        false.

        Raises:
            MomentError: The matrix is not symmetric, or has eigenvalues other than 0 and 1.
            NullSpaceError: It is zero.
        """
        basis = decompose(projector, what)
        strange = basis.values[(basis.values - basis.values.round().clamp(max=1)).abs() > 1e-2]
        if len(strange):
            value = float(strange[0])
            raise MomentError(f"{what} is no orthogonal projector: it has the eigenvalue {value:.3g}, not 0 or 1")
        n_null = int(basis.values.round().sum())
        if n_null == 0:
            raise NullSpaceError(f"{what} is zero: it leaves no direction to write to")
        # The null space is where P is 1, and comes first.
        vectors = MemoryVectors(basis.vectors.rows(0, len(basis.values)).flip(0))
        return cls(Eigenbasis(1 - basis.values.round().flip(0), vectors), n_null, ordered=False)

    def coordinates(self, keys: Tensor, n: int | None = None) -> Tensor:
        """U^T K: the keys in the eigenbasis.

        Args:
            keys: (d, N), any floating point.
            n: How many coordinates, smallest eigenvalues first; by default all d.

        Returns:
            (n, N) float64, on the device of ``keys``. The first ``n_null`` rows are those of the null space:
            their squared norm is that of P K.

        Raises:
            SettingError: The keys are not of width d.
        """
        if keys.dim() != 2 or keys.shape[0] != self.d:
            raise SettingError(f"keys are {' x '.join(map(str, keys.shape))}: the null space is for {self.d} x N")
        return self.basis.coordinates(keys.detach().to(torch.float64), self._within(n))

    def combine(self, coefficients: Tensor) -> Tensor:
        """U[:, :m] C: vectors of the key space from their first m coordinates; the inverse of :meth:`coordinates`.

        Args:
            coefficients: C, (m, N) with m at most d.

        Returns:
            (d, N) float64, on the device of ``coefficients``.

        Raises:
            SettingError: There are more than d coefficients.
        """
        if coefficients.dim() != 2:
            raise SettingError(f"coefficients have {coefficients.dim()} dimensions: give a matrix, (m, N)")
        self._within(coefficients.shape[0])
        return self.basis.combine(coefficients.detach().to(torch.float64))

    def _within(self, n: int | None) -> int:
        if n is None:
            return self.d
        if not 0 <= n <= self.d:
            raise SettingError(f"{n} coordinates: the eigenbasis has {self.d}")
        return n

    def __repr__(self) -> str:
        return f"NullSpace({self.n_null} of {self.d} eigenvectors, {100 * self.energy:.3g} % of the energy)"


def _spectrum(values: Tensor) -> str:
    """The eigenvalues in a sentence, with the thresholds that would keep a share of them."""
    quantile = {share: float(values[min(round(share * len(values)), len(values) - 1)]) for share in (0.3, 0.5, 0.7)}
    thresholds = ", ".join(f"{value:.3g} would keep {100 * share:g} %" for share, value in quantile.items())
    return (
        f"the eigenvalues run from {float(values[0]):.3g} to {float(values[-1]):.3g}; "
        f'a threshold of {thresholds}. Or choose NullSpaceRule("share", 0.7)'
    )
