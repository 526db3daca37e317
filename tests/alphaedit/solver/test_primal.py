"""The form in the space of the eigenvectors: no drift, and no memory for a rank that is not reached."""

from __future__ import annotations

import pytest
import torch

from corsa_plugins.alphaedit.solver.closed_form import SearchSettings, solve
from tests.support.memory import LargestTensor
from tests.support.problems import error

EVERYTHING = SearchSettings(threshold=0.0)


@pytest.mark.parametrize("ridge", [1e-3, 10.0])
def test_thousands_of_additions_do_not_drift(ridge: float) -> None:
    d, n_null = 1100, 60
    g = torch.Generator().manual_seed(0)
    new, prior = (torch.randn(d, n, generator=g, dtype=torch.float64) for n in (12, 20))
    new += torch.randn(d, 1, generator=g, dtype=torch.float64)
    R = torch.randn(5, 12, generator=g, dtype=torch.float64)
    searched = solve(new, prior, R, ridge=ridge, n_null=n_null, search=EVERYTHING, form="primal")
    assert searched.rank == d
    for rank in (n_null + 100, (d + n_null) // 2, d):
        fresh = solve(new, prior, R, ridge=ridge, n_null=rank, form="dual")
        assert searched.objective[rank - n_null] == pytest.approx(fresh.objective[0], rel=1e-8)
    assert error(searched.coefficients, fresh.coefficients) <= 1e-8


def test_memory_of_the_primal_form_grows_with_the_rank_it_reaches() -> None:
    g = torch.Generator().manual_seed(0)
    new, prior = (torch.randn(600, n, generator=g, dtype=torch.float64) for n in (40, 660))
    R = torch.randn(5, 40, generator=g, dtype=torch.float64)
    with LargestTensor() as largest:
        solution = solve(new, prior, R, ridge=1.0, n_null=5, search=SearchSettings(0.0, limit=8))
    assert (solution.form, solution.rank) == ("primal", 13)
    assert largest.numel < 600 * 600 / 4
