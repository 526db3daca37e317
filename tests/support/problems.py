"""Random edits: weights, keys, targets, and a second moment's eigenvectors, for the oracle and for the product."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corsa_plugins.alphaedit.solver.closed_form import Solution, solve
from corsa_plugins.alphaedit.solver.conflict import prior_weights
from tests.oracles import alphaedit as oracle


@dataclass(frozen=True)
class Problem:
    """Columns are samples. ``U``: eigenvectors in ascending order of the eigenvalues, ``n_null`` of the null space."""

    W: np.ndarray
    K1: np.ndarray
    V1: np.ndarray
    Kp: np.ndarray
    U: np.ndarray
    n_null: int
    ridge: float = 0.7
    beta: float = 3.0

    @classmethod
    def random(
        cls, d: int = 20, d_out: int = 9, N: int = 4, M: int = 3, n_null: int = 8, seed: int = 0, **more: Any
    ) -> Problem:
        g = np.random.default_rng(seed)
        U = np.linalg.qr(g.normal(size=(d, d)))[0]
        # Keys overlap with each other, and more with directions late in the order than with the null space.
        spread = U @ np.diag(np.linspace(0.4, 1.6, d))
        common = g.normal(size=(d, 1))
        K1 = spread @ (g.normal(size=(d, N)) + 0.5 * common)
        Kp = spread @ (g.normal(size=(d, M)) + 0.5 * common)
        return cls(g.normal(size=(d_out, d)), K1, g.normal(size=(d_out, N)), Kp, U, n_null, **more)

    def but(self, **changes: Any) -> Problem:
        return replace(self, **changes)

    @property
    def R(self) -> np.ndarray:
        return self.V1 - self.W @ self.K1

    @property
    def P(self) -> np.ndarray:
        return oracle.projector(self.U, range(self.n_null))

    @property
    def Lp(self) -> np.ndarray:
        return oracle.weights(self.Kp, self.K1)

    def coordinates(self, keys: np.ndarray) -> Tensor:
        return torch.from_numpy(self.U.T @ keys)

    @property
    def new(self) -> Tensor:
        return self.coordinates(self.K1)

    @property
    def prior(self) -> Tensor:
        """With the weights of the product, as an editor puts it together."""
        keys = self.coordinates(self.Kp)
        return keys * (self.beta * prior_weights(keys, self.new)).sqrt()

    def solve(self, residual: np.ndarray | Tensor | None = None, **more: Any) -> Solution:
        r = torch.as_tensor(self.R if residual is None else residual)
        return solve(self.new, self.prior, r, **{"ridge": self.ridge, "n_null": self.n_null, **more})

    def delta(self, solution: Solution, residual: np.ndarray | Tensor | None = None) -> np.ndarray:
        """Delta in the basis of the weights."""
        r = torch.as_tensor(self.R if residual is None else residual)
        return solution.delta_coordinates(r).numpy() @ self.U[:, : solution.rank].T


def error(ours: Any, literal: Any) -> float:
    """Norm of the difference, relative to the literal's."""
    return float(np.linalg.norm(np.asarray(ours) - np.asarray(literal)) / np.linalg.norm(np.asarray(literal)))
