"""The form in the space of the samples: no drift, and nothing larger than the keys."""

from __future__ import annotations

import pytest
import torch

from corsa_plugins.alphaedit.solver import dual
from corsa_plugins.alphaedit.solver.closed_form import SearchSettings, solve
from tests.support.memory import LargestTensor
from tests.support.problems import error

EVERYTHING = SearchSettings(threshold=0.0)


@pytest.mark.parametrize("ridge", [1e-3, 10.0])
def test_thousands_of_additions_do_not_drift(ridge: float) -> None:
    d, n_null = 4000, 60
    g = torch.Generator().manual_seed(0)
    new, prior = (torch.randn(d, n, generator=g, dtype=torch.float64) for n in (12, 20))
    new += torch.randn(d, 1, generator=g, dtype=torch.float64)
    R = torch.randn(5, 12, generator=g, dtype=torch.float64)
    searched = solve(new, prior, R, ridge=ridge, n_null=n_null, search=EVERYTHING, form="dual")
    assert searched.rank == d
    for rank in (n_null + 100, (d + n_null) // 2, d):
        fresh = solve(new, prior, R, ridge=ridge, n_null=rank, form="dual")
        assert searched.objective[rank - n_null] == pytest.approx(fresh.objective[0], rel=1e-8)
    assert error(searched.coefficients, fresh.coefficients) <= 1e-8


def test_the_inverse_is_renewed_before_it_drifts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without renewal the same search would lose digits where the keys are large beside the ridge."""
    g = torch.Generator().manual_seed(0)
    new = (
        torch.randn(900, 8, generator=g, dtype=torch.float64) * torch.logspace(3, -3, 900, dtype=torch.float64)[:, None]
    )
    R = torch.randn(3, 8, generator=g, dtype=torch.float64)
    exact = solve(new, new[:, :0], R, ridge=1e-4, n_null=900, form="dual").objective[0]

    def drift() -> float:
        solution = solve(new, new[:, :0], R, ridge=1e-4, n_null=0, search=EVERYTHING, form="dual")
        return abs(solution.objective[-1] / exact - 1)

    kept = drift()
    monkeypatch.setattr(dual, "REFRESH", 10**9)
    assert kept <= 1e-8
    assert drift() > 10 * kept


@pytest.mark.parametrize("search", [None, SearchSettings(0.0, limit=40)])
def test_the_dual_form_makes_nothing_larger_than_the_keys(search: SearchSettings | None) -> None:
    d, n = 20_000, 30
    g = torch.Generator().manual_seed(0)
    new, prior = (torch.randn(d, half, generator=g, dtype=torch.float64) for half in (10, 20))
    R = torch.randn(5, 10, generator=g, dtype=torch.float64)
    with LargestTensor() as largest:
        solution = solve(new, prior, R, ridge=1.0, n_null=d // 2, search=search)
        solution.residual_after(R)
    assert solution.form == "dual"
    assert n * n < largest.numel <= d * n
