"""Algorithm 1 against the paper's with d x d matrices, line by line and as a whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from corsa_plugins.alphaedit import AlphaEditSettings, NullSpace, SearchSettings, SmoothingSettings
from corsa_plugins.alphaedit.algorithm import (
    LayerProblem,
    Update,
    algorithm_1,
    beta,
    prior_weighting,
    relax,
    residual,
    update,
)
from corsa_plugins.alphaedit.solver.eigenbasis import Eigenbasis, MemoryVectors
from corsa_plugins.alphaedit.solver.smoothing import SmoothingError
from tests.oracles import alphaedit as oracle
from tests.support.problems import Problem, error

TIGHT = 1e-9
EPSILON, STEPS, TOLERANCE = 5e-3, 6, 0.05
SETTINGS = AlphaEditSettings(
    layers=(0,),
    ridge=0.7,
    prior_weight=3.0,
    search=SearchSettings(EPSILON),
    smoothing=SmoothingSettings(steps=STEPS, threshold=1e9, tolerance=TOLERANCE, selection="early_stop"),
)


def inputs(p: Problem, *, ordered: bool = True, **more: Any) -> LayerProblem:
    values = torch.linspace(0, 1, len(p.U), dtype=torch.float64)
    basis = Eigenbasis(values, MemoryVectors(torch.from_numpy(np.ascontiguousarray(p.U.T))))
    return LayerProblem(
        keys=torch.from_numpy(p.K1),
        inconsistency=torch.from_numpy(p.R),
        prior_keys=torch.from_numpy(p.Kp),
        space=NullSpace(basis, p.n_null, ordered=ordered),
        **more,
    )


def delta(made: Update) -> np.ndarray:
    return (made.left @ made.right.T).numpy()


def never(made: Update) -> float:
    raise AssertionError("nothing is smoothed, and nothing is to be chosen")


def threshold_above(p: Problem, n: int) -> float:
    """tau_r, with ``n`` requests of a larger residual."""
    return float(np.sort(np.linalg.norm(p.R, axis=0))[len(p.R.T) - n - 1]) + 1e-6


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("smoothed", [0, 2])
def test_it_is_algorithm_1(seed: int, smoothed: int) -> None:
    p = Problem.random(N=6, seed=seed)
    tau = threshold_above(p, smoothed)
    probe = np.random.default_rng(seed).normal(size=(p.U.shape[0], 5))

    def val_score(change: np.ndarray) -> float:
        return float(np.linalg.norm((p.W + change) @ probe) ** 0.5)

    literal, t = oracle.algorithm_1(
        p.W, p.K1, p.V1, p.Kp, p.U, p.n_null, STEPS, tau, EPSILON, TOLERANCE, p.ridge, p.beta, val_score
    )
    settings = replace(SETTINGS, smoothing=replace(SETTINGS.smoothing, threshold=tau))
    asked: list[float] = []

    def validate(made: Update) -> float:
        asked.append(val_score(delta(made)))
        return asked[-1]

    edit = algorithm_1(inputs(p), settings, validate)
    assert error(delta(edit.update), literal) <= TIGHT
    assert bool(asked) == bool(smoothed)
    if edit.choice is None:  # lines 11 to 14
        assert not smoothed
        assert not edit.smoothing.any()
        assert t == STEPS
    else:
        assert edit.choice.t == t
        assert edit.choice.scores == tuple(asked)
        assert int((edit.smoothing > 0).sum()) == (smoothed if t < STEPS else 0)


def test_line_1_the_weighting_of_earlier_edits() -> None:
    p = Problem.random()
    assert prior_weighting(inputs(p), SETTINGS).tolist() == pytest.approx(np.diag(p.Lp).tolist())
    assert prior_weighting(inputs(p), replace(SETTINGS, conflict_weights=False)).tolist() == [1, 1, 1]


@pytest.mark.parametrize("t", [0, 2, STEPS])
def test_lines_3_and_17_smoothed_targets(t: int) -> None:
    p = Problem.random(N=6)
    tau = threshold_above(p, 2)
    settings = replace(SETTINGS, smoothing=replace(SETTINGS.smoothing, threshold=tau))
    targets, factors = oracle.smoothed(p.W, p.K1, p.V1, t, STEPS, np.linalg.norm(p.R, axis=0) > tau)
    assert beta(inputs(p), t, settings).tolist() == pytest.approx(factors.tolist())
    assert error(residual(inputs(p), t, settings), targets - p.W @ p.K1) <= TIGHT


def test_lines_4_to_10_the_relaxed_null_space() -> None:
    p = Problem.random()
    used, P_mod, values = oracle.search(p.W, p.K1, p.V1, p.Kp, p.Lp, p.U, p.n_null, p.ridge, p.beta, EPSILON)
    relaxed = relax(inputs(p), prior_weighting(inputs(p), SETTINGS), SETTINGS)
    assert relaxed.solution.rank == len(used) > p.n_null
    assert relaxed.solution.objective == pytest.approx(values, rel=1e-8)
    literal = oracle.solution(p.R, p.K1, p.Kp, p.Lp, P_mod, p.ridge, p.beta)
    assert error(p.R @ relaxed.right.T.numpy(), literal) <= TIGHT
    # a projector says nothing of the order of the eigenvectors beyond it
    for without in (
        relax(inputs(p, ordered=False), prior_weighting(inputs(p), SETTINGS), SETTINGS),
        relax(inputs(p), prior_weighting(inputs(p), SETTINGS), replace(SETTINGS, search=None)),
    ):
        assert without.solution.rank == p.n_null


@pytest.mark.parametrize("t", range(STEPS + 1))
def test_lines_15_and_18_are_equations_8_and_9(t: int) -> None:
    """Solved once: the update of any t is that of a solution from scratch for the targets of that t."""
    p = Problem.random(N=6)
    tau = threshold_above(p, 3)
    settings = replace(SETTINGS, search=None, smoothing=replace(SETTINGS.smoothing, threshold=tau))
    relaxed = relax(inputs(p), prior_weighting(inputs(p), settings), settings)
    targets, _ = oracle.smoothed(p.W, p.K1, p.V1, t, STEPS, np.linalg.norm(p.R, axis=0) > tau)
    literal = oracle.solution(targets - p.W @ p.K1, p.K1, p.Kp, p.Lp, p.P, p.ridge, p.beta)
    assert error(delta(update(inputs(p), relaxed, t, settings)), literal) <= TIGHT


def test_further_keys_have_the_same_residuals_and_held_keys_none() -> None:
    """As if each key of a request were a request of its own, and each held key an earlier edit of weight 1."""
    p, other = Problem.random(seed=1), Problem.random(M=5, seed=2)
    settings = replace(SETTINGS, search=None, smoothing=None)
    weighting = prior_weighting(inputs(p), settings)
    problem = inputs(p, further_keys=[torch.from_numpy(other.K1)], held_keys=torch.from_numpy(other.Kp))
    keys = np.hstack([p.K1, other.K1])
    held = np.hstack([p.Kp @ np.sqrt(p.beta * p.Lp), other.Kp])
    one = np.eye(held.shape[1])
    literal = oracle.solution(np.hstack([p.R, p.R]), keys, held, one, p.P, p.ridge, 1.0)
    assert error(delta(update(problem, relax(problem, weighting, settings), 0, settings)), literal) <= TIGHT
    none = inputs(p, further_keys=(), held_keys=None)
    plain = oracle.solution(p.R, p.K1, p.Kp, p.Lp, p.P, p.ridge, p.beta)
    assert error(delta(update(none, relax(none, weighting, settings), 0, settings)), plain) <= TIGHT
    assert error(literal, plain) > 0.1


def test_without_its_parts_it_is_alphaedit() -> None:
    """Eq. 2, and nothing is asked of a validation."""
    p = Problem.random(N=6)
    edit = algorithm_1(inputs(p), SETTINGS.alphaedit(), never)
    assert error(delta(edit.update), oracle.alphaedit(p.R, p.K1, p.Kp, p.P, p.ridge)) <= TIGHT
    assert edit.choice is None
    assert edit.prior_weighting.tolist() == [1, 1, 1]


def test_lemma_4_without_conflicts_it_is_alphaedit_too() -> None:
    p = Problem.random(N=3, M=2)
    inside = p.U[:, : p.n_null] @ np.linalg.qr(np.random.default_rng(0).normal(size=(p.n_null, 5)))[0]
    p = p.but(K1=inside[:, :3], Kp=inside[:, 3:])
    edit = algorithm_1(inputs(p), replace(SETTINGS, prior_weight=1.0), never)
    assert error(delta(edit.update), oracle.alphaedit(p.R, p.K1, p.Kp, p.P, p.ridge)) <= TIGHT
    assert edit.relaxed.solution.added == 0


def test_layers_share_what_is_missing_and_may_weigh_earlier_edits_by_their_position() -> None:
    p = Problem.random()
    settings = replace(SETTINGS, search=None, prior_weight_by_layer=True)
    for position, n_layers in ((1, 3), (2, 3), (3, 3)):
        share = p.R / (n_layers - position + 1)
        edit = algorithm_1(inputs(p, position=position, n_layers=n_layers), settings, never)
        literal = oracle.solution(share, p.K1, p.Kp, p.Lp, p.P, p.ridge, position * p.beta)
        assert error(delta(edit.update), literal) <= TIGHT


def test_who_is_inconsistent_does_not_depend_on_the_share_of_the_layer() -> None:
    p = Problem.random(N=6)
    settings = replace(SETTINGS, smoothing=replace(SETTINGS.smoothing, threshold=threshold_above(p, 2)))
    chosen = [beta(inputs(p, position=position, n_layers=4), 0, settings).tolist() for position in (1, 4)]
    assert chosen[0] == chosen[1]
    assert sum(factor > 0 for factor in chosen[0]) == 2


def test_a_relative_ridge_is_in_units_of_the_projected_keys() -> None:
    p = Problem.random()
    relaxed = relax(inputs(p), prior_weighting(inputs(p), SETTINGS), replace(SETTINGS, ridge_unit="relative"))
    assert relaxed.ridge == pytest.approx(0.7 * (np.linalg.norm(p.P @ p.K1, axis=0) ** 2).mean())


def test_inputs_are_left_alone_and_a_score_of_nan_decides_nothing() -> None:
    p = Problem.random(N=6)
    settings = replace(SETTINGS, smoothing=replace(SETTINGS.smoothing, threshold=threshold_above(p, 2)))
    given = inputs(p)
    before = [tensor.clone() for tensor in (given.keys, given.inconsistency, given.prior_keys)]
    with pytest.raises(SmoothingError, match="t = 0 is NaN"):
        algorithm_1(given, settings, lambda made: float("nan"))
    algorithm_1(given, settings, lambda made: 1.0)
    after = (given.keys, given.inconsistency, given.prior_keys)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
