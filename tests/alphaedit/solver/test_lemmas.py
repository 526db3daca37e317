"""The exact statements of papers/alphaedit-plus.md, sections 2.2, 3.1 and appendix A, of what the product solves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corsa_plugins.alphaedit.solver.closed_form import SearchSettings, Solution, solve
from corsa_plugins.alphaedit.solver.conflict import pairwise_conflict, prior_weights, sample_conflict, subspace_conflict
from corsa_plugins.alphaedit.solver.smoothing import SmoothingSettings, select_smoothing, smoothing
from tests.oracles import alphaedit as oracle
from tests.support.problems import Problem, error

TIGHT = 1e-9
FORMS = st.sampled_from(["dual", "primal"])
SEEDS = st.integers(0, 2**31)
RIDGES = st.floats(1e-2, 1e2)


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def in_null_space(p: Problem, columns: int, seed: int) -> np.ndarray:
    """Orthonormal keys that P leaves as they are."""
    return p.U[:, : p.n_null] @ np.linalg.qr(np.random.default_rng(seed).normal(size=(p.n_null, columns)))[0]


def left_over(p: Problem, solution: Solution) -> np.ndarray:
    """||(W + Delta) k_i - v_i|| for each request, from the update itself."""
    return np.linalg.norm((p.W + p.delta(solution)) @ p.K1 - p.V1, axis=0)


def alphaedit(p: Problem, form: str) -> Solution:
    """Eq. 2: no weights, no search."""
    return solve(p.new, p.coordinates(p.Kp), torch.as_tensor(p.R), ridge=p.ridge, n_null=p.n_null, form=form)  # type: ignore[arg-type]


@settings(max_examples=25, deadline=None)
@given(SEEDS, RIDGES, FORMS)
def test_equation_4_without_its_spurious_lambda(seed: int, ridge: float, form: str) -> None:
    """Eq. 4 and 15 print lambda r (P k)^T / (lambda + ||P k||^2); the lambda on top is a slip, as Eq. 14 shows."""
    p = Problem.random(N=1, M=0, seed=seed, ridge=ridge)
    u = p.P @ p.K1[:, 0]
    literal = np.outer(p.R[:, 0], u) / (ridge + u @ u)
    assert error(p.delta(p.solve(form=form)), literal) <= TIGHT


@settings(max_examples=25, deadline=None)
@given(SEEDS, RIDGES, FORMS)
def test_lemma_1_conflict_with_preserved_knowledge(seed: int, ridge: float, form: str) -> None:
    p = Problem.random(N=1, M=0, seed=seed, ridge=ridge)
    p = p.but(K1=unit(p.K1))
    r, s = np.linalg.norm(p.R), subspace_conflict(p.new, p.n_null).item()
    solution = p.solve(form=form)
    assert left_over(p, solution)[0] == pytest.approx(ridge / (ridge + np.linalg.norm(p.P @ p.K1) ** 2) * r, rel=TIGHT)
    assert left_over(p, solution)[0] == pytest.approx(ridge / (ridge + 1 - s**2) * r, rel=TIGHT)
    assert np.linalg.norm(solution.residual_after(torch.as_tensor(p.R))) == pytest.approx(left_over(p, solution)[0])


def test_lemma_1_in_the_limit_a_key_outside_the_null_space_is_not_edited_at_all() -> None:
    p = Problem.random(N=1, M=0)
    p = p.but(K1=p.U[:, [p.n_null + 3]])
    assert subspace_conflict(p.new, p.n_null).item() == pytest.approx(1.0)
    assert np.linalg.norm(p.delta(p.solve())) <= 1e-12
    # And that is what the search is for: it goes on until the key is reachable.
    reached = p.solve(search=SearchSettings(limit=None, block=4, threshold=1e-4))
    assert left_over(p, reached)[0] == pytest.approx(p.ridge / (p.ridge + 1) * np.linalg.norm(p.R))


@settings(max_examples=25, deadline=None)
@given(SEEDS, RIDGES, st.floats(-1, 1), FORMS)
def test_lemma_2_conflict_with_a_prior_edit(seed: int, ridge: float, s: float, form: str) -> None:
    p = Problem.random(N=1, seed=seed, ridge=ridge)
    first, second = in_null_space(p, 2, seed).T
    p = p.but(K1=first[:, None], Kp=(s * first + np.sqrt(1 - s * s) * second)[:, None])
    assert sample_conflict(p.new, p.coordinates(p.Kp)).item() == pytest.approx(abs(s), abs=1e-12)
    r, kp = p.R, p.Kp[:, 0]
    solution = alphaedit(p, form)
    literal = np.outer(r, (ridge + 1) * first - s * kp) / ((ridge + 1) ** 2 - s**2)  # Eq. 23
    assert error(p.delta(solution), literal) <= TIGHT
    expected = ridge * (ridge + 1) / ((ridge + 1) ** 2 - s**2) * np.linalg.norm(r)
    assert left_over(p, solution)[0] == pytest.approx(expected, rel=TIGHT)


@settings(max_examples=25, deadline=None)
@given(SEEDS, RIDGES, st.floats(-1, 1), st.floats(1e-2, 1e3), FORMS)
def test_equation_47_with_the_weight_of_prior_edits(seed: int, ridge: float, s: float, beta: float, form: str) -> None:
    p = Problem.random(N=1, seed=seed, ridge=ridge)
    first, second = in_null_space(p, 2, seed).T
    p = p.but(K1=first[:, None], Kp=(s * first + np.sqrt(1 - s * s) * second)[:, None])
    R = torch.as_tensor(p.R)
    scaled = p.coordinates(p.Kp) * beta**0.5
    solution = solve(p.new, scaled, R, ridge=ridge, n_null=p.n_null, form=form)  # type: ignore[arg-type]
    expected = ridge * (ridge + beta) / ((ridge + 1) * (ridge + beta) - beta * s * s) * np.linalg.norm(p.R)
    assert left_over(p, solution)[0] == pytest.approx(expected, rel=1e-8)


@settings(max_examples=25, deadline=None)
@given(SEEDS, RIDGES, st.floats(1, 50), FORMS)
def test_lemma_3_inconsistency(seed: int, ridge: float, rho: float, form: str) -> None:
    p = Problem.random(N=2, M=0, seed=seed, ridge=ridge)
    R = p.R
    R[:, 1] *= rho * np.linalg.norm(R[:, 0]) / np.linalg.norm(R[:, 1])
    p = p.but(V1=p.W @ p.K1 + R)
    G = p.K1.T @ p.P @ p.K1
    D = (ridge + G[0, 0]) * (ridge + G[1, 1]) - G[0, 1] ** 2
    solution = p.solve(form=form)
    # Eq. 28, the identity behind it; it is what the product calls the remainder.
    assert error(solution.remainder, ridge * np.linalg.inv(G + ridge * np.eye(2))) <= TIGHT
    assert error((p.W + p.delta(solution)) @ p.K1 - p.V1, -R @ solution.remainder.numpy()) <= 1e-8
    e, r = left_over(p, solution), np.linalg.norm(R[:, 0])
    assert e[0] <= ridge / D * (ridge + G[1, 1] + rho * abs(G[0, 1])) * r * (1 + TIGHT)
    assert e[1] <= ridge / D * (abs(G[0, 1]) + rho * (ridge + G[0, 0])) * r * (1 + TIGHT)


def test_lemma_3_bounds_are_reached() -> None:
    """By parallel residuals of opposite effect: a bound that nothing reaches would hold of a wrong solution too."""
    p = Problem.random(N=2, M=0, d_out=1, seed=1)
    G, rho = p.K1.T @ p.P @ p.K1, 3.0
    R = np.array([[1.0, -rho * np.sign(G[0, 1])]])
    p = p.but(V1=p.W @ p.K1 + R)
    D = (p.ridge + G[0, 0]) * (p.ridge + G[1, 1]) - G[0, 1] ** 2
    bounds = [p.ridge + G[1, 1] + rho * abs(G[0, 1]), abs(G[0, 1]) + rho * (p.ridge + G[0, 0])]
    assert left_over(p, p.solve()) == pytest.approx(p.ridge / D * np.array(bounds))


@settings(max_examples=25, deadline=None)
@given(SEEDS, RIDGES, st.integers(1, 3), st.integers(0, 3), FORMS)
def test_lemma_4_without_conflict_it_is_alphaedit(seed: int, ridge: float, N: int, M: int, form: str) -> None:
    """All three parts on, and none has anything to do."""
    p = Problem.random(seed=seed, ridge=ridge, N=N, M=M, beta=1.0)
    keys = in_null_space(p, N + M, seed)
    mixed = keys[:, :N] @ np.random.default_rng(seed).normal(size=(N, N))  # they may conflict with each other
    p = p.but(K1=mixed, Kp=keys[:, N:])
    # The conditions: s(k_i, K_0) = 0, s(k_j, K_1) = 0, ||r_i|| <= tau_r.
    preserved = p.coordinates(p.U[:, p.n_null :])
    assert sample_conflict(p.new, preserved).max() <= 1e-12
    assert subspace_conflict(p.new, p.n_null).max() <= 1e-12
    assert torch.allclose(prior_weights(p.coordinates(p.Kp), p.new), torch.ones(M, dtype=torch.float64))
    assert pairwise_conflict(p.new).shape == (N, N)
    norms = torch.as_tensor(p.R).norm(dim=0)
    unsmoothed = SmoothingSettings(threshold=float(norms.max()))

    def score(t: int) -> float:
        raise AssertionError("nothing is to be validated")

    choice = select_smoothing(score, unsmoothed, norms)
    applied = torch.as_tensor(p.R) * (1 - smoothing(norms, choice.t, unsmoothed))
    plus = p.solve(applied, search=SearchSettings(1e-9), form=form)
    assert plus.added == 0
    assert error(p.delta(plus, applied), oracle.alphaedit(p.R, p.K1, p.Kp, p.P, ridge)) <= TIGHT
    assert error(p.delta(plus, applied), p.delta(alphaedit(p, form))) <= TIGHT


def test_each_part_does_something_where_its_condition_fails() -> None:
    """Lemma 4 would hold of an editor without any of the parts; this would not."""
    p = Problem.random(beta=1.0)
    R = torch.as_tensor(p.R)
    plain = p.delta(alphaedit(p, "dual"))
    assert error(p.delta(p.solve()), plain) > 1e-3  # the weights
    searched = solve(p.new, p.coordinates(p.Kp), R, ridge=p.ridge, n_null=p.n_null, search=SearchSettings(1.4e-4))
    assert searched.added > 0
    assert error(p.delta(searched), plain) > 1e-3
    smoothed = R * (1 - smoothing(R.norm(dim=0), 0, SmoothingSettings(over_median=0)))
    assert error(p.delta(alphaedit(p, "dual"), smoothed), plain) > 1e-3


@settings(max_examples=20, deadline=None)
@given(SEEDS, FORMS)
def test_a_conflicting_prior_edit_stands_less_in_the_way_with_its_weight(seed: int, form: str) -> None:
    """Section 3.1: Lambda_p gives way where new and prior keys agree, so the new edit gets further."""
    p = Problem.random(N=1, M=1, seed=seed, beta=100.0)
    p = p.but(Kp=p.K1 + 0.05 * p.Kp)
    R = torch.as_tensor(p.R)
    full = solve(p.new, 10.0 * p.coordinates(p.Kp), R, ridge=p.ridge, n_null=p.n_null, form=form)  # type: ignore[arg-type]
    assert left_over(p, p.solve(form=form))[0] < left_over(p, full)[0]
