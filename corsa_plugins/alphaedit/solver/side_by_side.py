"""The eigenbasis of keys that lie side by side, as those of a mixture's experts: one basis for each, in one order.

Keys kappa = [kappa_1; ...; kappa_E], of which each token has few that are not zero, have a second moment of E x E
blocks. What is kept of it are the E blocks on the diagonal, E[kappa_e kappa_e^T] over *all* tokens. Their eigenvectors,
each with zeros for the other experts, are orthonormal, and of each the moment in full has the same mean square::

    u^T E[kappa kappa^T] u = u_e^T E[kappa_e kappa_e^T] u_e                   u = [0; ...; u_e; ...; 0]

so that the eigenvalues, the threshold and the price of an eigenvector are those of the dense closed form. A direction
in the null space of its expert's keys is in that of all keys: nothing that should be spared is written to. What is
given up are directions in which experts that are taken together cancel each other, for which products of all pairs of
them would be needed, E times as many numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from corsa_plugins.alphaedit.solver.eigenbasis import Eigenbasis

__all__ = ["SideBySide"]


@dataclass(frozen=True)
class _Rows:
    """The eigenvectors of all experts, with the zeros: for whoever asks for them as they are."""

    parts: tuple[Eigenbasis, ...]
    order: Tensor

    def rows(self, start: int, stop: int) -> Tensor:
        width = len(self.parts[0].values)
        chosen = self.order[start:stop]
        result = torch.zeros(len(chosen), len(self.order), dtype=torch.float64)
        for row, place in enumerate(chosen.tolist()):
            expert, number = divmod(place, width)
            own = slice(expert * width, (expert + 1) * width)
            result[row, own] = self.parts[expert].vectors.rows(number, number + 1)[0].double()
        return result


@dataclass(frozen=True)
class SideBySide(Eigenbasis):
    """Bases of the same width, side by side. Of experts whose keys are zero no eigenvectors are read.

    Attributes:
        parts: One for each expert.
        order: (d,), the place of each eigenvector among those of the first expert, the second, ...
    """

    parts: tuple[Eigenbasis, ...]
    order: Tensor

    @classmethod
    def of(cls, parts: Sequence[Eigenbasis]) -> SideBySide:
        """All eigenvectors of the bases in ascending order of their eigenvalues; of equal ones the earlier expert's
        first."""
        values = torch.cat([part.values for part in parts])
        order = values.argsort(stable=True)
        return cls(values[order], _Rows(tuple(parts), order), tuple(parts), order)

    def coordinates(self, keys: Tensor, n: int) -> Tensor:
        order = self.order[:n]
        flat = torch.zeros_like(keys)
        for part, rows, count in self._counted(order):
            if count and bool(keys[rows].any()):
                flat[rows.start : rows.start + count] = part.coordinates(keys[rows], count)
        return flat[order.to(keys.device)]

    def combine(self, coefficients: Tensor) -> Tensor:
        order = self.order[: len(coefficients)]
        flat = coefficients.new_zeros(len(self.order), coefficients.shape[1])
        flat[order.to(coefficients.device)] = coefficients
        result = torch.zeros_like(flat)
        for part, rows, count in self._counted(order):
            own = flat[rows.start : rows.start + count]
            if bool(own.any()):
                result[rows] = part.combine(own)
        return result

    def _counted(self, order: Tensor) -> list[tuple[Eigenbasis, slice, int]]:
        """Each expert's basis, its rows among all, and how many of its eigenvectors are in ``order``: its first ones,
        as its eigenvalues ascend."""
        width = len(self.parts[0].values)
        counts = torch.bincount(order // width, minlength=len(self.parts)).tolist()
        return [(part, slice(i * width, (i + 1) * width), counts[i]) for i, part in enumerate(self.parts)]
