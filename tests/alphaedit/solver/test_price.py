"""What an eigenvector costs what is preserved: both rules against the definitions, and what follows from the price."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corsa_plugins.alphaedit.solver.closed_form import SearchSettings, Solution
from corsa_plugins.alphaedit.solver.price import grades
from corsa_plugins.errors import SettingError
from tests.oracles import alphaedit as oracle
from tests.support.forms import FORMS, TIGHT, problems
from tests.support.problems import Problem, error

RULES = ["graded", "price"]
weights = st.sampled_from([0.1, 0.5, 1.0, 4.0])
priced_problems = problems.filter(lambda p: p.n_null > 0)


def spectrum(p: Problem, seed: int = 0) -> np.ndarray:
    """Eigenvalues over two orders of magnitude, ascending."""
    return np.sort(10 ** np.random.default_rng(seed).uniform(-1, 1, size=len(p.U)))


def solve(p: Problem, s: np.ndarray, rule: Any = "graded", form: str = "auto", **search: Any) -> Solution:
    return p.solve(form=form, search=SearchSettings(rule=rule, **search), eigenvalues=torch.from_numpy(s))


@settings(max_examples=30, deadline=None)
@given(priced_problems, st.sampled_from(FORMS), weights)
def test_graded_eigenvectors_make_the_best_edit_at_the_price(p: Problem, form: str, weight: float) -> None:
    s = spectrum(p)
    found = solve(p, s, form=form, weight=weight)
    literal = oracle.priced(p.R, p.K1, p.Kp, p.Lp, p.U, s, p.n_null, p.ridge, p.beta, weight)
    assert np.linalg.norm(p.delta(found) - literal) <= 1e-8 * (1e-3 + np.linalg.norm(literal))
    value = oracle.priced_objective(p.W, literal, p.K1, p.V1, p.Kp, p.Lp, p.U, s, p.n_null, p.ridge, p.beta, weight)
    assert found.objective[-1] == pytest.approx(value, rel=1e-8)
    assert np.allclose(found.residual_after(torch.from_numpy(p.R)).numpy(), p.R - literal @ p.K1, atol=1e-7)


def test_no_other_edit_does_better_at_the_price() -> None:
    p, g = Problem.random(), np.random.default_rng(1)
    s = spectrum(p)
    delta = p.delta(solve(p, s))
    rest = (p.K1, p.V1, p.Kp, p.Lp, p.U, s, p.n_null, p.ridge, p.beta, SearchSettings().weight)
    best = oracle.priced_objective(p.W, delta, *rest)
    for step in (1e-3, 1e-1, 1.0):
        other = delta + step * g.normal(size=delta.shape)
        assert oracle.priced_objective(p.W, other, *rest) > best


@settings(max_examples=30, deadline=None)
@given(priced_problems, st.sampled_from(FORMS), weights, st.sampled_from([1, 3, 10]))
def test_search_by_price_equals_the_definitions(p: Problem, form: str, weight: float, block: int) -> None:
    s = spectrum(p)
    found = solve(p, s, "price", form, weight=weight, block=block)
    used, P_mod, values = oracle.priced_search(
        p.W, p.K1, p.V1, p.Kp, p.Lp, p.U, s, p.n_null, p.ridge, p.beta, weight, at_a_time=block
    )
    assert found.rank == len(used)
    assert found.objective == pytest.approx(values, rel=1e-8)
    literal = oracle.solution(p.R, p.K1, p.Kp, p.Lp, P_mod, p.ridge, p.beta)
    assert np.linalg.norm(p.delta(found) - literal) <= TIGHT * (1e-3 + np.linalg.norm(literal))
    assert (found.refused is None) == (found.rank == 16)


@pytest.mark.parametrize("form", FORMS)
def test_search_by_price_stops_where_the_leverage_no_longer_pays(form: str) -> None:
    """u pays as long as s_u <= s_0 q / weight."""
    p = Problem.random(d=40, n_null=10, N=6, M=4)
    s = spectrum(p)
    ranks = set()
    for weight in (0.1, 0.3, 1.0):
        found = solve(p, s, "price", form, weight=weight)
        Z = torch.cat([p.new, p.prior], 1).numpy()
        for u in range(p.n_null, min(found.rank + 1, 40)):
            A = np.linalg.inv(Z[:u].T @ Z[:u] + p.ridge * np.eye(Z.shape[1]))
            pays = s[u] <= s[p.n_null - 1] * (1 + Z[u] @ A @ Z[u]) / weight
            assert pays == (u < found.rank)
        ranks.add(found.rank)
    assert len(ranks) == 3  # the weight decides


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("form", FORMS)
def test_units_do_not_count(rule: str, form: str) -> None:
    """Keys, with everything that is measured in them, may be scaled, and so may residuals."""
    p = Problem.random(d=40, n_null=10, N=6)
    s = spectrum(p)
    found = solve(p, s, rule, form, weight=0.5)
    scaled = p.but(W=p.W / 30, K1=30 * p.K1, Kp=30 * p.Kp, ridge=900 * p.ridge)
    again = solve(scaled, 900 * s, rule, form, weight=0.5)
    assert again.rank == found.rank
    assert torch.allclose(again.grades, found.grades)
    assert error(30 * scaled.delta(again), p.delta(found)) <= 1e-8
    larger = solve(p.but(V1=p.V1 + 999 * p.R), s, rule, form, weight=0.5)
    assert larger.rank == found.rank


@pytest.mark.parametrize("form", FORMS)
def test_a_graded_edit_moves_less_of_what_is_preserved_the_dearer_that_is(form: str) -> None:
    p = Problem.random(d=40, n_null=10, N=6)
    s = spectrum(p)
    C, outside = p.U @ np.diag(s) @ p.U.T, oracle.projector(p.U, range(10, 40))
    moved, left = [], []
    for weight in (0.0, 0.1, 1.0, 10.0, 1e9):
        found = solve(p, s, form=form, weight=weight)
        moved.append(oracle.price(p.delta(found), outside, C, 1.0))
        left.append(float(found.residual_after(torch.from_numpy(p.R)).norm()))
    assert moved == sorted(moved, reverse=True)
    assert left == sorted(left)
    free = p.but(n_null=40).solve(form=form)
    assert error(p.delta(solve(p, s, form=form, weight=0.0)), p.but(n_null=40).delta(free)) <= 1e-8
    assert error(p.delta(found), p.delta(p.solve(form=form))) <= 1e-6  # at a price out of reach: AlphaEdit's


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("form", FORMS)
def test_keys_within_the_null_space_are_edited_as_by_alphaedit(rule: str, form: str) -> None:
    """Lemma 4."""
    p = Problem.random()
    p = p.but(K1=p.P @ p.K1, Kp=p.P @ p.Kp)
    found = solve(p, spectrum(p), rule, form)
    plain = oracle.solution(p.R, p.K1, p.Kp, p.Lp, p.P, p.ridge, p.beta)
    assert error(p.delta(found), plain) <= TIGHT


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("form", FORMS)
def test_limit_holds_where_the_price_decides(rule: str, form: str) -> None:
    p = Problem.random()
    for limit in (0, 1, 6, 100):
        found = solve(p, spectrum(p), rule, form, limit=limit, weight=1e-6)
        assert found.added == min(limit, 12)
        assert found.coefficients.shape == (found.rank, 4)
        assert found.grades.shape == (found.rank,)


def test_grades_fall_with_the_eigenvalues() -> None:
    s = torch.tensor([0.1, 0.2, 0.2, 0.4, 1.0])
    assert grades(s, 2, 1.0).tolist() == pytest.approx([1, 1, 1 / 2, 1 / 3, 1 / 6])
    assert grades(s, 2, 0.0).tolist() == [1] * 5
    # Of no direction more than s_0 / weight of the preserved keys' energy is laid open.
    assert float((grades(s, 2, 4.0)[2:] * s[2:]).max()) <= 0.2 / 4


@pytest.mark.parametrize("rule", RULES)
def test_where_the_null_space_holds_nothing_only_what_is_as_free_is_added(rule: str) -> None:
    """Fewer preserved keys than dimensions: zeros, and rounding, in the null space."""
    p = Problem.random()
    s = np.concatenate([np.full(8, -1e-18), np.zeros(3), np.linspace(0.1, 1, 9)])
    assert grades(torch.from_numpy(s), 8, 1.0).tolist() == [1] * 11 + [0] * 9
    found = solve(p, s, rule)
    assert error(p.delta(found), p.but(n_null=11).delta(p.but(n_null=11).solve())) <= TIGHT


def test_the_price_needs_the_spectrum_and_a_null_space() -> None:
    p = Problem.random()
    s = torch.from_numpy(spectrum(p))
    for wrong in (None, s[:-1], s * math.nan):
        with pytest.raises(SettingError, match="20 eigenvalues"):
            p.solve(search=SearchSettings(), eigenvalues=wrong)
    with pytest.raises(SettingError, match="null space"):
        p.but(n_null=0).solve(search=SearchSettings(), eigenvalues=s)


def test_a_threshold_and_a_price_do_not_go_together() -> None:
    assert SearchSettings().decides == "graded"
    assert SearchSettings(1e-3).decides == SearchSettings(1e-3, rule="threshold").decides == "threshold"
    with pytest.raises(SettingError, match=r"^threshold is None: .* must be a number"):
        SearchSettings(rule="threshold")
    for rule in RULES:
        with pytest.raises(SettingError, match=r"^threshold is .*leave the threshold out"):
            SearchSettings(1e-3, rule=rule)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match=r"^weight is"):
        SearchSettings(1e-3, weight=0.5)
