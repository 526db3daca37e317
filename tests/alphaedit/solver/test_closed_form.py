"""The closed form: equal to the paper's d x d algebra, in both forms, at any size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corsa_plugins.alphaedit.solver.closed_form import SearchSettings, solve
from corsa_plugins.alphaedit.solver.columns import ColumnsError
from corsa_plugins.errors import SettingError
from tests.oracles import alphaedit as oracle
from tests.support.forms import EVERYTHING, FORMS, TIGHT, problems
from tests.support.problems import Problem, error


@settings(max_examples=40, deadline=None)
@given(problems, st.sampled_from(FORMS))
def test_equals_equation_8_and_its_objective_equation_7(problem: Problem, form: str) -> None:
    p = problem
    literal = oracle.solution(p.R, p.K1, p.Kp, p.Lp, p.P, p.ridge, p.beta)
    solved = p.solve(form=form)
    assert solved.form == form
    assert (solved.rank, solved.added, solved.refused) == (p.n_null, 0, None)
    assert np.linalg.norm(p.delta(solved) - literal) <= TIGHT * (1e-3 + np.linalg.norm(literal))
    value = oracle.objective(p.W, literal, p.K1, p.V1, p.Kp, p.Lp, p.ridge, p.beta)
    assert solved.objective == pytest.approx((value,), rel=TIGHT)
    left = p.R - literal @ p.K1
    assert error(solved.residual_after(torch.as_tensor(p.R)), left) <= 1e-8 * np.linalg.norm(p.R) / np.linalg.norm(left)


@pytest.mark.parametrize("form", FORMS)
def test_without_weights_it_is_equation_2(form: str) -> None:
    p = Problem.random()
    solved = solve(p.new, p.coordinates(p.Kp), torch.as_tensor(p.R), ridge=p.ridge, n_null=p.n_null, form=form)  # type: ignore[arg-type]
    assert error(p.delta(solved), oracle.alphaedit(p.R, p.K1, p.Kp, p.P, p.ridge)) <= TIGHT


@settings(max_examples=30, deadline=None)
@given(problems, st.sampled_from([0.0, 1e-2]), st.sampled_from([1, 4]))
def test_dual_equals_primal(p: Problem, threshold: float, block: int) -> None:
    dual, primal = (p.solve(form=form, search=SearchSettings(threshold, block)) for form in FORMS)
    assert (dual.rank, dual.added) == (primal.rank, primal.added)
    assert dual.objective == pytest.approx(primal.objective, rel=1e-8)
    scale = 1 + dual.coefficients.norm()
    assert (dual.coefficients - primal.coefficients).norm() <= TIGHT * scale
    assert (dual.remainder - primal.remainder).norm() <= TIGHT


def test_the_smaller_form_is_taken() -> None:
    assert Problem.random(N=4, M=3, n_null=8).solve().form == "dual"
    assert Problem.random(N=4, M=5, n_null=8).solve().form == "primal"
    # A search may go on to rank d.
    assert Problem.random(N=4, M=5, n_null=8).solve(search=EVERYTHING).form == "dual"
    assert Problem.random(N=4, M=5, n_null=8).solve(search=SearchSettings(limit=0)).form == "primal"
    assert Problem.random(N=20, M=5, n_null=8).solve(search=EVERYTHING).form == "primal"


@settings(max_examples=30, deadline=None)
@given(problems, st.sampled_from(FORMS), st.integers(0, 2**31))
def test_the_order_of_the_requests_does_not_matter(p: Problem, form: str, seed: int) -> None:
    g = np.random.default_rng(seed)
    order, prior = g.permutation(p.K1.shape[1]), g.permutation(p.Kp.shape[1])
    search = SearchSettings(1e-2)
    plain = p.solve(form=form, search=search)
    reordered = p.but(K1=p.K1[:, order], V1=p.V1[:, order], Kp=p.Kp[:, prior]).solve(form=form, search=search)
    assert plain.rank == reordered.rank
    assert (plain.coefficients[:, order] - reordered.coefficients).norm() <= TIGHT * (1 + plain.coefficients.norm())


@settings(max_examples=30, deadline=None)
@given(problems, st.sampled_from(FORMS))
def test_objective_never_rises_and_scales_with_the_square_of_the_residual(p: Problem, form: str) -> None:
    solved = p.solve(form=form, search=EVERYTHING)
    assert all(after <= before for before, after in zip(solved.objective, solved.objective[1:], strict=False))
    assert 0 < solved.objective[-1] <= np.linalg.norm(p.R) ** 2 * (1 + 1e-12)
    scaled = p.solve(1e3 * p.R, form=form, search=EVERYTHING)
    assert scaled.objective == pytest.approx([1e6 * value for value in solved.objective], rel=1e-8)
    assert error(p.delta(scaled, 1e3 * p.R) + 1, 1e3 * p.delta(solved) + 1) <= TIGHT


@pytest.mark.parametrize("form", FORMS)
def test_what_an_edit_leaves_of_targets_that_it_was_not_made_for(form: str) -> None:
    """A smoothed target's update, measured against the target itself."""
    p = Problem.random(N=6)
    solved = p.solve(form=form, search=SearchSettings(1e-3))
    applied = p.R * np.linspace(0.5, 1, 6)
    left = solved.residual_after(torch.as_tensor(p.R), torch.as_tensor(applied))
    assert error(left, p.R - p.delta(solved, applied) @ p.K1) <= TIGHT


@pytest.mark.parametrize("form", FORMS)
def test_edits_of_orthogonal_keys_do_not_interact(form: str) -> None:
    p = Problem.random(M=0, N=2)
    inside = p.U[:, : p.n_null] @ np.linalg.qr(np.random.default_rng(0).normal(size=(p.n_null, 2)))[0]
    both = p.but(K1=inside * [2.0, 0.5])
    together = both.delta(both.solve(form=form))
    alone = [both.but(K1=both.K1[:, [i]], V1=both.V1[:, [i]]) for i in range(2)]
    assert error(together, sum(single.delta(single.solve(form=form)) for single in alone)) <= TIGHT
    assert np.linalg.norm(alone[0].delta(alone[0].solve()) @ both.K1[:, 1]) <= 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_editing_again_has_little_left_to_do(form: str) -> None:
    p = Problem.random(ridge=1e-3)
    first = p.delta(p.solve(form=form))
    again = p.but(W=p.W + first)
    assert np.linalg.norm(again.R) <= 1e-2 * np.linalg.norm(p.R)
    assert np.linalg.norm(again.delta(again.solve(form=form))) <= 1e-2 * np.linalg.norm(first)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n_null", [0, 20])
def test_null_spaces_that_are_nothing_or_everything(form: str, n_null: int) -> None:
    p = Problem.random(n_null=n_null)
    solved = p.solve(form=form)
    assert solved.coefficients.shape == (n_null, 4)
    assert error(solved.residual_after(torch.as_tensor(p.R)), p.R - p.delta(solved) @ p.K1) <= TIGHT
    if not n_null:
        assert solved.objective[0] == pytest.approx(np.linalg.norm(p.R) ** 2)
    searched = p.solve(form=form, search=EVERYTHING)
    whole = oracle.solution(p.R, p.K1, p.Kp, p.Lp, np.eye(20), p.ridge, p.beta)
    assert searched.rank == 20
    assert error(p.delta(searched), whole) <= TIGHT


@pytest.mark.parametrize("form", FORMS)
def test_a_residual_of_zero_is_no_work(form: str) -> None:
    p = Problem.random()
    for threshold in (0.0, 1e-4):
        solved = p.solve(np.zeros_like(p.R), form=form, search=SearchSettings(threshold))
        assert (solved.added, solved.refused, solved.objective) == (0, 0.0, (0.0,))
        assert not p.delta(solved, np.zeros_like(p.R)).any()


@pytest.mark.parametrize("form", FORMS)
def test_float32_comes_in_and_float64_goes_out(form: str) -> None:
    p = Problem.random()
    new, prior, R = (tensor.float() for tensor in (p.new, p.prior, torch.as_tensor(p.R)))
    rounded = solve(new, prior, R, ridge=0.7, n_null=8, form=form)  # type: ignore[arg-type]
    exact = solve(new.double(), prior.double(), R.double(), ridge=0.7, n_null=8, form=form)  # type: ignore[arg-type]
    assert rounded.coefficients.dtype == rounded.remainder.dtype == rounded.delta_coordinates(R).dtype == torch.float64
    assert torch.equal(rounded.coefficients, exact.coefficients)


def test_inputs_are_left_alone() -> None:
    p = Problem.random()
    new, prior, R = p.new, p.prior, torch.as_tensor(p.R)
    before = [tensor.clone() for tensor in (new, prior, R)]
    for form in FORMS:
        solve(new, prior, R, ridge=0.7, n_null=8, search=EVERYTHING, form=form)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(before, (new, prior, R), strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("form", FORMS)
def test_cuda_finds_the_same(form: str) -> None:
    p = Problem.random(d=64, N=8, M=9, n_null=20)
    here = p.solve(form=form, search=SearchSettings(1e-3))
    there = solve(
        p.new.cuda(), p.prior.cuda(), torch.as_tensor(p.R).cuda(),
        ridge=p.ridge, n_null=20, search=SearchSettings(1e-3), form=form,  # type: ignore[arg-type]
    )  # fmt: skip
    assert there.coefficients.is_cuda
    assert there.rank == here.rank
    assert error(there.coefficients.cpu(), here.coefficients) <= TIGHT


def bad(match: str, kind: type[Exception], **changes: Any) -> Any:
    return pytest.param(changes, kind, match, id=match)


NAN = torch.full((20, 4), math.nan)


@pytest.mark.parametrize(
    ("changes", "kind", "match"),
    [
        bad("ridge is 0", SettingError, ridge=0),
        bad("ridge is -1.0", SettingError, ridge=-1.0),
        bad("ridge is nan", SettingError, ridge=math.nan),
        bad("n_null is -1", SettingError, n_null=-1),
        bad("n_null is 21", SettingError, n_null=21),
        bad("n_null is True", SettingError, n_null=True),
        bad("form is 'both'", SettingError, form="both"),
        bad("no request", ColumnsError, new=torch.zeros(20, 0), residual=torch.zeros(9, 0)),
        bad("prior keys: 19 rows", ColumnsError, prior=torch.zeros(19, 2)),
        bad("residual: 3 columns for 4", ColumnsError, residual=torch.zeros(9, 3)),
        bad("new keys: NaN or infinity in column 0, 1, 2, 3", ColumnsError, new=NAN),
        bad("prior keys: NaN", ColumnsError, prior=NAN),
        bad("residual: NaN or infinity in column 2", ColumnsError, residual=torch.tensor([[0, 0, math.inf, 0]])),
        bad("residual: numbers so large", ColumnsError, residual=torch.full((9, 4), 1e200, dtype=torch.float64)),
        bad("ridge is too small", ColumnsError, new=torch.full((20, 4), 1e12), ridge=1e-9),
        bad("ridge is too small", ColumnsError, new=torch.full((20, 4), 1e180, dtype=torch.float64)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("chosen", FORMS)
def test_what_cannot_be_solved_is_refused_by_name(
    changes: dict[str, Any], kind: type[Exception], match: str, chosen: str
) -> None:
    p = Problem.random()
    given: dict[str, Any] = {"ridge": 0.7, "n_null": 8, "form": chosen}
    given.update(new=p.new, prior=p.prior, residual=torch.as_tensor(p.R))
    given.update(changes)
    with pytest.raises(kind, match=match):
        solve(given.pop("new"), given.pop("prior"), given.pop("residual"), **given)
