"""A relative ridge leaves the same share whatever the scale of the keys."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from corsa_plugins.alphaedit.solver.closed_form import relative_ridge, solve
from corsa_plugins.errors import SettingError
from tests.support.problems import Problem


def test_relative_ridge_leaves_the_same_share_whatever_the_scale_of_the_keys() -> None:
    """Lemma 1 with lambda = 0.1 ||P k||^2: 0.1 / 1.1 of the residual is left."""
    p = Problem.random(N=1, M=0)
    for scale in (1e-3, 1.0, 1e3):
        ridge = relative_ridge(0.1, p.new * scale, p.n_null)
        assert ridge == pytest.approx(0.1 * scale**2 * np.linalg.norm(p.P @ p.K1) ** 2)
        solution = solve(p.new * scale, p.prior, torch.as_tensor(p.R), ridge=ridge, n_null=p.n_null)
        assert solution.remainder.item() == pytest.approx(0.1 / 1.1)
    many = Problem.random(N=5)
    assert relative_ridge(2.0, many.new, 8) == pytest.approx(2 * (np.linalg.norm(many.P @ many.K1, axis=0) ** 2).mean())
    for value, new, n_null in [(0.1, p.new, 0), (0.1, torch.zeros(20, 3), 8), (0.1, torch.zeros(20, 0), 8)]:
        with pytest.raises(SettingError, match="part in the null space"):
            relative_ridge(value, new, n_null)
    with pytest.raises(SettingError, match="ridge is 0"):
        relative_ridge(0, p.new, 8)
