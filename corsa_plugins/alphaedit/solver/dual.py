"""The edit in the space of the samples: n x n matrices for n = N + M new and prior keys.

With Z = [K1, Kp (beta Lambda_p)^(1/2)], G = Z^T P Z and A = (G + lambda I)^-1, Eq. 8 is

    Delta = [R, 0] A Z^T P        and Eq. 7 at its minimum        lambda tr([R, 0] A [R, 0]^T)

Eigenvectors V added to the null space add the rows B = V^T Z to the coordinates. With I + B A B^T = F F^T and
H = F^-1 B A, the objective falls by lambda ||H[:, :N] R^T||^2 and A becomes A - H^T H: for one eigenvector O(n^2)
instead of a solve, and all that is needed of it is one row of coordinates. By hand, as torch has no update of a
factorisation. B times the new A is F^-T H, so that the new solution writes Delta V = R H[:, :N]^T F^-1 along V.
"""

from __future__ import annotations

import torch
from torch import Tensor

from corsa_plugins.alphaedit.solver.price import Proposal
from corsa_plugins.alphaedit.solver.ridge import factorise

__all__ = ["DualForm"]

REFRESH = 256
"""Additions after which A is computed anew from the Gram matrix, so that rounding does not build up."""


class DualForm:
    """A for a null space that grows.

    Attributes:
        rank: m, the rows of the coordinates in use.
        ridge: lambda.
        objective: Eq. 7 at its minimum for that rank.
    """

    def __init__(self, new: Tensor, prior: Tensor, residual: Tensor, ridge: float, rank: int) -> None:
        """``residual`` is (r, N), any matrix with the R^T R of the residual."""
        self.rank = rank
        self._new, self._prior, self._residual, self.ridge = new, prior, residual, ridge
        self._n_new = new.shape[1]
        n = self._n_new + prior.shape[1]
        self._gram = new.new_zeros(n, n)
        self._in_gram = 0
        self._inverse: Tensor | None = None
        self._step: tuple[Tensor, float] | None = None
        self._renew()

    def propose(self, count: int) -> Proposal:
        """What the next ``count`` eigenvectors would gain, and what would be written along them."""
        if self._inverse is None:
            self._inverse = torch.cholesky_inverse(self._factor)
        rows = self._rows(self.rank, self.rank + count)
        half = rows @ self._inverse
        inner = half @ rows.T
        inner.diagonal().add_(1)
        tip = factorise(inner)
        step = torch.linalg.solve_triangular(tip, half, upper=False)
        fitted = step[:, : self._n_new] @ self._residual.T
        gain = self.ridge * float(fitted.square().sum())
        self._step = step, gain
        written = torch.linalg.solve_triangular(tip.mT, fitted, upper=True)
        return Proposal(gain, written.square().sum(1))

    def accept(self) -> None:
        """Add the eigenvectors last proposed."""
        assert self._step is not None
        assert self._inverse is not None
        step, gain = self._step
        self._step = None
        self.rank += step.shape[0]
        if self.rank - self._in_gram >= REFRESH:
            self._renew()
            return
        self.objective -= gain
        self._inverse.addmm_(step.T, step, alpha=-1)

    def finish(self) -> tuple[Tensor, Tensor]:
        """Q (m, N), and the (N, N) matrix that a residual is multiplied by for what the edit leaves of it."""
        if self._in_gram < self.rank:
            self._renew()
        columns = self._columns  # of A, those of the new keys
        coefficients = self._new[: self.rank] @ columns[: self._n_new]
        coefficients += self._prior[: self.rank] @ columns[self._n_new :]
        # I - (A G)_11 = lambda A_11, and nothing cancels in the latter
        return coefficients, self.ridge * columns[: self._n_new]

    def _rows(self, start: int, stop: int) -> Tensor:
        return torch.cat([self._new[start:stop], self._prior[start:stop]], dim=1)

    def _renew(self) -> None:
        """Everything from the coordinates, as if the search had never been."""
        # By blocks: beside the coordinates themselves there is then no other matrix with their d rows.
        for start in range(self._in_gram, self.rank, 4 * REFRESH):
            rows = self._rows(start, min(start + 4 * REFRESH, self.rank))
            self._gram.addmm_(rows.T, rows)
        self._in_gram = self.rank
        regular = self._gram.clone()
        regular.diagonal().add_(self.ridge)
        self._factor = factorise(regular)
        unit = torch.eye(regular.shape[0], self._n_new, dtype=regular.dtype, device=regular.device)
        self._columns = torch.cholesky_solve(unit, self._factor)
        self._inverse = None
        product = self._residual @ self._columns[: self._n_new]
        self.objective = self.ridge * float((product * self._residual).sum())
