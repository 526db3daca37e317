"""The edit in the basis of the null space: m x m matrices for a null space of rank m, however many the samples.

With C1 and Cp the coordinates of K1 and Kp (beta Lambda_p)^(1/2), and B = C1 C1^T + Cp Cp^T + lambda I = L L^T,
Eq. 8 is

    Delta = R C1^T B^-1 U^T       and Eq. 7 at its minimum        ||R||^2 - ||F||^2  with  F = L^-1 C1 R^T

An eigenvector added to the null space is one row more of B, L and F: the rows above stay as they are, so the step is
O(m (m + n)), the rounding is that of a factorisation from scratch, and the objective falls by the square of F's new
row. What the new solution writes along it is that row over L's new diagonal element, as (Delta U)^T = L^-T F ends in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from corsa_plugins.alphaedit.solver.price import Proposal
from corsa_plugins.alphaedit.solver.ridge import factorise

__all__ = ["PrimalForm"]

SPARE = 256
"""Rows by which the factor's memory grows when it is full."""

PANEL = 256
"""Rows of the factor that are solved for at a time."""


class PrimalForm:
    """L and F for a null space that grows.

    Attributes:
        rank: m, the rows of the coordinates in use.
        ridge: lambda.
        objective: Eq. 7 at its minimum for that rank.
    """

    def __init__(self, new: Tensor, prior: Tensor, residual: Tensor, ridge: float, rank: int) -> None:
        """``residual`` is (r, N), any matrix with the R^T R of the residual."""
        self.rank = rank
        self._new, self._prior, self._residual, self.ridge = new, prior, residual, ridge
        self._step: tuple[Tensor, Tensor, Tensor] | None = None
        self._factor = factorise(self._moment(rank, 0, rank))
        self._fitted = torch.linalg.solve_triangular(self._factor, new[:rank] @ residual.T, upper=False)
        self.objective = float(residual.square().sum() - self._fitted.square().sum())

    def propose(self, count: int) -> Proposal:
        """What the next ``count`` eigenvectors would gain, and what would be written along them."""
        m = self.rank
        border = self._moment(m, m, m + count)
        left = self._forward(border)
        tip = factorise(self._moment(m + count, m, m + count)[m:] - left.T @ left)
        fresh = self._new[m : m + count] @ self._residual.T - left.T @ self._fitted[:m]
        fresh = torch.linalg.solve_triangular(tip, fresh, upper=False)
        self._step = left, tip, fresh
        written = torch.linalg.solve_triangular(tip.mT, fresh, upper=True)
        return Proposal(float(fresh.square().sum()), written.square().sum(1))

    def accept(self) -> None:
        """Add the eigenvectors last proposed."""
        assert self._step is not None
        left, tip, fresh = self._step
        self._step = None
        m, end = self.rank, self.rank + len(tip)
        if end > len(self._factor):
            self._reserve(end + SPARE)
        self._factor[m:end, :m] = left.T
        self._factor[m:end, m:end] = tip
        self._fitted[m:end] = fresh
        self.rank = end
        self.objective -= float(fresh.square().sum())

    def finish(self) -> tuple[Tensor, Tensor]:
        """Q (m, N), and the (N, N) matrix that a residual is multiplied by for what the edit leaves of it."""
        new, factor = self._new[: self.rank], self._factor[: self.rank, : self.rank]
        left = -(new.T @ torch.cholesky_solve(new, factor))
        left.diagonal().add_(1)
        return torch.cholesky_solve(new, factor), left

    def _moment(self, rows: int, start: int, stop: int) -> Tensor:
        """The first ``rows`` rows of columns ``start`` to ``stop`` of B."""
        block = self._new[:rows] @ self._new[start:stop].T
        block.addmm_(self._prior[:rows], self._prior[start:stop].T)
        # Above the diagonal of B there are no such rows, and nothing is added.
        block[start:stop].diagonal().add_(self.ridge)
        return block

    def _forward(self, right: Tensor) -> Tensor:
        """L^-1 ``right``, by panels: torch copies a triangle that is part of a larger matrix before it solves with it,
        and a copy of all of L at every step takes longer than the step."""
        solved = torch.empty_like(right)
        for start in range(0, self.rank, PANEL):
            rows = slice(start, min(start + PANEL, self.rank))
            rest = right[rows] - self._factor[rows, :start] @ solved[:start]
            solved[rows] = torch.linalg.solve_triangular(self._factor[rows, rows], rest, upper=False)
        return solved

    def _reserve(self, rows: int) -> None:
        m = self.rank
        factor = self._factor.new_zeros(rows, rows)
        factor[:m, :m] = self._factor[:m, :m]
        fitted = self._fitted.new_zeros(rows, self._fitted.shape[1])
        fitted[:m] = self._fitted[:m]
        self._factor, self._fitted = factor, fitted
