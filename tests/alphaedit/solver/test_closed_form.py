"""The closed form and its search: equal to the paper's d x d algebra, in both forms, at any size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from corsa_plugins.alphaedit.solver import dual
from corsa_plugins.alphaedit.solver.closed_form import SearchSettings, Solution, relative_ridge, solve
from corsa_plugins.alphaedit.solver.columns import ColumnsError
from corsa_plugins.alphaedit.solver.smoothing import SmoothingSettings, select_smoothing, smoothing
from corsa_plugins.errors import SettingError
from tests.oracles import alphaedit as oracle
from tests.support.problems import Problem, error

FORMS = ["dual", "primal"]
EVERYTHING = SearchSettings(threshold=0.0)
TIGHT = 1e-9

problems = st.builds(
    Problem.random,
    d=st.just(16), d_out=st.integers(1, 9), N=st.integers(1, 20), M=st.integers(0, 9), n_null=st.integers(0, 16),
    seed=st.integers(0, 2**31), ridge=st.floats(1e-2, 1e2), beta=st.sampled_from([0.0, 1.0, 100.0]),
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(problems, st.sampled_from(FORMS))
def test_equals_equation_8_and_its_objective_equation_7(problem: Problem, form: str) -> None:
    p = problem
    literal = oracle.solution(p.R, p.K1, p.Kp, p.Lp, p.P, p.ridge, p.beta)
    found = p.solve(form=form)
    assert found.form == form
    assert (found.rank, found.added, found.refused) == (p.n_null, 0, None)
    assert np.linalg.norm(p.delta(found) - literal) <= TIGHT * (1e-3 + np.linalg.norm(literal))
    value = oracle.objective(p.W, literal, p.K1, p.V1, p.Kp, p.Lp, p.ridge, p.beta)
    assert found.objective == pytest.approx((value,), rel=TIGHT)
    left = p.R - literal @ p.K1
    assert error(found.residual_after(torch.as_tensor(p.R)), left) <= 1e-8 * np.linalg.norm(p.R) / np.linalg.norm(left)


@pytest.mark.parametrize("form", FORMS)
def test_without_weights_it_is_equation_2(form: str) -> None:
    p = Problem.random()
    found = solve(p.new, p.coordinates(p.Kp), torch.as_tensor(p.R), ridge=p.ridge, n_null=p.n_null, form=form)  # type: ignore[arg-type]
    assert error(p.delta(found), oracle.alphaedit(p.R, p.K1, p.Kp, p.P, p.ridge)) <= TIGHT


@settings(max_examples=30, deadline=None)
@given(problems, st.sampled_from(FORMS), st.sampled_from([0.0, 1e-3, 1e-2, 5e-2]), st.sampled_from([1, 3, 10]))
def test_search_equals_algorithm_1_line_by_line(p: Problem, form: str, threshold: float, block: int) -> None:
    found = p.solve(form=form, search=SearchSettings(threshold, block))
    used, P_mod, values = oracle.search(
        p.W, p.K1, p.V1, p.Kp, p.Lp, p.U, p.n_null, p.ridge, p.beta, threshold, at_a_time=block
    )
    assert (found.rank, found.added) == (len(used), len(used) - p.n_null)
    assert found.objective == pytest.approx(values, rel=1e-8)
    literal = oracle.solution(p.R, p.K1, p.Kp, p.Lp, P_mod, p.ridge, p.beta)
    assert np.linalg.norm(p.delta(found) - literal) <= TIGHT * (1e-3 + np.linalg.norm(literal))
    # What was refused is what the threshold says; and it was refused only if there was something left to refuse.
    assert (found.refused is None) == (found.rank == 16)


@pytest.mark.parametrize("form", FORMS)
def test_search_equals_the_published_codes(form: str) -> None:
    """Ten at a time against 10 epsilon, and beta times the layer's place."""
    p = Problem.random(d=64, n_null=17, N=6, M=5)
    stops = set()
    for epsilon in (1e-4, 1e-2, 3e-2, 6e-2):
        used, P_mod, values = oracle.published_search(
            p.W, p.K1, p.V1, p.Kp, p.Lp, p.U, p.n_null, p.ridge, p.beta, epsilon, layer_position=4
        )
        found = p.but(beta=4 * p.beta).solve(form=form, search=SearchSettings(epsilon, block=10))
        assert found.rank == len(used)
        assert found.objective == pytest.approx(values, rel=TIGHT)
        literal = oracle.solution(p.R, p.K1, p.Kp, p.Lp, P_mod, p.ridge, 4 * p.beta)
        assert error(p.delta(found), literal) <= TIGHT
        stops.add(found.added)
    assert len(stops) > 1  # the threshold decides


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share_above", [0, 2])
def test_the_rooms_together_are_algorithm_1(seed: int, share_above: int) -> None:
    """Weights, search at t = 0, smoothing and choice by score, against all of it; with nobody to smooth too."""
    p = Problem.random(N=6, seed=seed)
    T, epsilon, tolerance = 6, 5e-3, 0.05
    norms = torch.as_tensor(p.R).norm(dim=0)
    tau = float(norms.sort().values[len(norms) - share_above - 1]) + 1e-6
    probe = np.random.default_rng(seed).normal(size=(p.U.shape[0], 5))

    def val_score(delta: np.ndarray) -> float:
        return float(np.linalg.norm((p.W + delta) @ probe) ** 0.5)

    literal, t = oracle.algorithm_1(
        p.W, p.K1, p.V1, p.Kp, p.U, p.n_null, T, tau, epsilon, tolerance, p.ridge, p.beta, val_score
    )
    chosen = SmoothingSettings(steps=T, threshold=tau, tolerance=tolerance)
    R = torch.as_tensor(p.R)
    found = p.solve(R * (1 - smoothing(norms, 0, chosen)), search=SearchSettings(epsilon))

    def score(t: int) -> float:
        return val_score(p.delta(found, R * (1 - smoothing(norms, t, chosen))))

    choice = select_smoothing(score, chosen, norms)
    assert choice.t == t
    assert bool(choice.scores) == bool(share_above)
    applied = R * (1 - smoothing(norms, choice.t, chosen))
    assert error(p.delta(found, applied), literal) <= TIGHT
    assert error(found.residual_after(R, applied), p.R - literal @ p.K1) <= TIGHT


@settings(max_examples=30, deadline=None)
@given(problems, st.sampled_from([0.0, 1e-2]), st.sampled_from([1, 4]))
def test_dual_equals_primal(p: Problem, threshold: float, block: int) -> None:
    one, other = (p.solve(form=form, search=SearchSettings(threshold, block)) for form in FORMS)
    assert (one.rank, one.added) == (other.rank, other.added)
    assert one.objective == pytest.approx(other.objective, rel=1e-8)
    scale = 1 + one.coefficients.norm()
    assert (one.coefficients - other.coefficients).norm() <= TIGHT * scale
    assert (one.remainder - other.remainder).norm() <= TIGHT


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
    one = p.solve(form=form, search=search)
    other = p.but(K1=p.K1[:, order], V1=p.V1[:, order], Kp=p.Kp[:, prior]).solve(form=form, search=search)
    assert one.rank == other.rank
    assert (one.coefficients[:, order] - other.coefficients).norm() <= TIGHT * (1 + one.coefficients.norm())


@settings(max_examples=30, deadline=None)
@given(problems, st.sampled_from(FORMS))
def test_objective_never_rises_and_scales_with_the_square_of_the_residual(p: Problem, form: str) -> None:
    found = p.solve(form=form, search=EVERYTHING)
    assert all(after <= before for before, after in zip(found.objective, found.objective[1:], strict=False))
    assert 0 < found.objective[-1] <= np.linalg.norm(p.R) ** 2 * (1 + 1e-12)
    scaled = p.solve(1e3 * p.R, form=form, search=EVERYTHING)
    assert scaled.objective == pytest.approx([1e6 * value for value in found.objective], rel=1e-8)
    assert error(p.delta(scaled, 1e3 * p.R) + 1, 1e3 * p.delta(found) + 1) <= TIGHT


@pytest.mark.parametrize("form", FORMS)
def test_edits_of_orthogonal_keys_do_not_interact(form: str) -> None:
    p = Problem.random(M=0, N=2)
    inside = p.U[:, : p.n_null] @ np.linalg.qr(np.random.default_rng(0).normal(size=(p.n_null, 2)))[0]
    both = p.but(K1=inside * [2.0, 0.5])
    together = both.delta(both.solve(form=form))
    alone = [both.but(K1=both.K1[:, [i]], V1=both.V1[:, [i]]) for i in range(2)]
    assert error(together, sum(one.delta(one.solve(form=form)) for one in alone)) <= TIGHT
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
    found = p.solve(form=form)
    assert found.coefficients.shape == (n_null, 4)
    assert error(found.residual_after(torch.as_tensor(p.R)), p.R - p.delta(found) @ p.K1) <= TIGHT
    if not n_null:
        assert found.objective[0] == pytest.approx(np.linalg.norm(p.R) ** 2)
    searched = p.solve(form=form, search=EVERYTHING)
    whole = oracle.solution(p.R, p.K1, p.Kp, p.Lp, np.eye(20), p.ridge, p.beta)
    assert searched.rank == 20
    assert error(p.delta(searched), whole) <= TIGHT


@pytest.mark.parametrize("form", FORMS)
def test_a_residual_of_zero_is_no_work(form: str) -> None:
    p = Problem.random()
    for threshold in (0.0, 1e-4):
        found = p.solve(np.zeros_like(p.R), form=form, search=SearchSettings(threshold))
        assert (found.added, found.refused, found.objective) == (0, 0.0, (0.0,))
        assert not p.delta(found, np.zeros_like(p.R)).any()


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_added_where_nothing_can_be_gained(form: str) -> None:
    p = Problem.random()
    p = p.but(K1=p.P @ p.K1, Kp=p.P @ p.Kp)
    found = p.solve(form=form, search=EVERYTHING)
    assert found.added == 0
    assert found.refused is not None
    assert found.refused <= 1e-16  # the rounding of U^T P K


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("block", [1, 4])
def test_limit_is_kept_to(form: str, block: int) -> None:
    p = Problem.random()
    for limit in (0, 1, 6, 100):
        found = p.solve(form=form, search=SearchSettings(0.0, block, limit))
        assert found.added == min(limit, 12)
        assert found.refused is None
        assert len(found.objective) == 1 + math.ceil(found.added / block)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ridge", [1e-3, 10.0])
def test_thousands_of_additions_do_not_drift(form: str, ridge: float) -> None:
    d, n_null = (4000, 60) if form == "dual" else (1100, 60)
    g = torch.Generator().manual_seed(0)
    new, prior = (torch.randn(d, n, generator=g, dtype=torch.float64) for n in (12, 20))
    new += torch.randn(d, 1, generator=g, dtype=torch.float64)
    R = torch.randn(5, 12, generator=g, dtype=torch.float64)
    searched = solve(new, prior, R, ridge=ridge, n_null=n_null, search=EVERYTHING, form=form)  # type: ignore[arg-type]
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
        found = solve(new, new[:, :0], R, ridge=1e-4, n_null=0, search=EVERYTHING, form="dual")
        return abs(found.objective[-1] / exact - 1)

    kept = drift()
    monkeypatch.setattr(dual, "REFRESH", 10**9)
    assert kept <= 1e-8
    assert drift() > 10 * kept


class LargestTensor(TorchDispatchMode):
    """The most elements of any tensor an operation puts out."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.numel = max(self.numel, leaf.numel())
        return out


@pytest.mark.parametrize("search", [None, SearchSettings(0.0, limit=40)])
def test_the_dual_form_makes_nothing_larger_than_the_keys(search: SearchSettings | None) -> None:
    d, n = 20_000, 30
    g = torch.Generator().manual_seed(0)
    new, prior = (torch.randn(d, half, generator=g, dtype=torch.float64) for half in (10, 20))
    R = torch.randn(5, 10, generator=g, dtype=torch.float64)
    with LargestTensor() as largest:
        found = solve(new, prior, R, ridge=1.0, n_null=d // 2, search=search)
        found.residual_after(R)
    assert found.form == "dual"
    assert n * n < largest.numel <= d * n


def test_memory_of_the_primal_form_grows_with_the_rank_it_reaches() -> None:
    g = torch.Generator().manual_seed(0)
    new, prior = (torch.randn(600, n, generator=g, dtype=torch.float64) for n in (40, 660))
    R = torch.randn(5, 40, generator=g, dtype=torch.float64)
    with LargestTensor() as largest:
        found = solve(new, prior, R, ridge=1.0, n_null=5, search=SearchSettings(0.0, limit=8))
    assert (found.form, found.rank) == ("primal", 13)
    assert largest.numel < 600 * 600 / 4


@pytest.mark.parametrize("form", FORMS)
def test_float32_comes_in_and_float64_goes_out(form: str) -> None:
    p = Problem.random()
    new, prior, R = (tensor.float() for tensor in (p.new, p.prior, torch.as_tensor(p.R)))
    one = solve(new, prior, R, ridge=0.7, n_null=8, form=form)  # type: ignore[arg-type]
    other = solve(new.double(), prior.double(), R.double(), ridge=0.7, n_null=8, form=form)  # type: ignore[arg-type]
    assert one.coefficients.dtype == one.remainder.dtype == one.delta_coordinates(R).dtype == torch.float64
    assert torch.equal(one.coefficients, other.coefficients)


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


def test_search_settings_out_of_range_are_refused_by_name() -> None:
    wrong: list[tuple[str, Any]] = [
        ("threshold", -1e-4), ("threshold", math.nan), ("threshold", None), ("block", 0), ("block", 1.0), ("limit", -1),
        ("limit", 2.5),
    ]  # fmt: skip
    for name, value in wrong:
        with pytest.raises(SettingError, match=f"^{name} is"):
            SearchSettings(**{name: value})


def test_relative_ridge_leaves_the_same_share_whatever_the_scale_of_the_keys() -> None:
    """Lemma 1 with lambda = 0.1 ||P k||^2: 0.1 / 1.1 of the residual is left."""
    p = Problem.random(N=1, M=0)
    for scale in (1e-3, 1.0, 1e3):
        ridge = relative_ridge(0.1, p.new * scale, p.n_null)
        assert ridge == pytest.approx(0.1 * scale**2 * np.linalg.norm(p.P @ p.K1) ** 2)
        found = solve(p.new * scale, p.prior, torch.as_tensor(p.R), ridge=ridge, n_null=p.n_null)
        assert found.remainder.item() == pytest.approx(0.1 / 1.1)
    many = Problem.random(N=5)
    assert relative_ridge(2.0, many.new, 8) == pytest.approx(2 * (np.linalg.norm(many.P @ many.K1, axis=0) ** 2).mean())
    for value, new, n_null in [(0.1, p.new, 0), (0.1, torch.zeros(20, 3), 8), (0.1, torch.zeros(20, 0), 8)]:
        with pytest.raises(SettingError, match="part in the null space"):
            relative_ridge(value, new, n_null)
    with pytest.raises(SettingError, match="ridge is 0"):
        relative_ridge(0, p.new, 8)


def test_a_solution_says_what_ended_the_search() -> None:
    p = Problem.random()
    found = p.solve(search=SearchSettings(0.05))
    assert isinstance(found, Solution)
    assert found.refused is not None
    assert 0 < found.refused < 0.05
    assert all((a - b) / a >= 0.05 for a, b in zip(found.objective, found.objective[1:], strict=False))
    # Line 7: a reduction *below* epsilon ends it, one that equals epsilon does not.
    assert p.solve(search=SearchSettings(found.refused)).added > found.added
