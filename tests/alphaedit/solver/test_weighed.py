"""MEMIT, ROME, EMMET and ENCORE in coordinates are what their papers write with d x d matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from corsa_plugins.alphaedit.solver.closed_form import SearchSettings, solve
from corsa_plugins.alphaedit.solver.columns import ColumnsError
from corsa_plugins.alphaedit.solver.exact import solve_exactly
from corsa_plugins.alphaedit.solver.nullspace import NullSpace, NullSpaceRule
from corsa_plugins.alphaedit.solver.orthogonal import orthogonal
from corsa_plugins.alphaedit.solver.weighed import everything, weighed
from corsa_plugins.errors import SettingError
from tests.oracles import family as oracle
from tests.support.problems import Problem, error

TIGHT = 1e-9
SHARE = NullSpaceRule("share", 0.4)


def moment(p: Problem) -> np.ndarray:
    """A second moment with the problem's eigenvectors, from 0.01 to 30."""
    return p.U @ np.diag(np.geomspace(0.01, 30, len(p.U))) @ p.U.T


def anywhere(p: Problem) -> NullSpace:
    return everything(NullSpace.from_moment(torch.from_numpy(moment(p)), SHARE))


def delta(p: Problem, space: NullSpace, ridge: float, prior: np.ndarray | None = None) -> np.ndarray:
    keys = space.coordinates(torch.from_numpy(p.K1))
    earlier = space.coordinates(torch.from_numpy(p.K1[:, :0] if prior is None else prior))
    residual = torch.from_numpy(p.R)
    if ridge:
        solution = solve(keys, earlier, residual, ridge=ridge, n_null=space.n_null)
    else:
        solution = solve_exactly(keys, residual)
    return p.R @ space.combine(solution.coefficients).numpy().T


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ridge", [1e-3, 0.7, 1e4])
def test_memit(seed: int, ridge: float) -> None:
    p = Problem.random(seed=seed)
    ours = delta(p, weighed(anywhere(p)), ridge)
    assert error(ours, oracle.memit(p.R, p.K1, moment(p), ridge)) <= TIGHT


def test_memit_with_earlier_edits_spared() -> None:
    p = Problem.random()
    ours = delta(p, weighed(anywhere(p)), 0.7, p.Kp * 3**0.5)
    assert error(ours, oracle.memit(p.R, p.K1, moment(p), 0.7, 3 * p.Kp @ p.Kp.T)) <= TIGHT


def test_encore() -> None:
    p = Problem.random()
    ours = delta(p, weighed(anywhere(p), norm_weight=0.2), 0.7)
    assert error(ours, oracle.encore(p.R, p.K1, moment(p), 0.7, 0.2 * 0.7)) <= TIGHT


def test_rome_is_exact_for_one_and_emmet_for_several() -> None:
    p = Problem.random(N=4)
    space = weighed(anywhere(p))
    assert error(delta(p, space, 0), oracle.emmet(p.R, p.K1, moment(p))) <= TIGHT
    assert error(delta(p, space, 0) @ p.K1, p.R) <= TIGHT
    one = p.but(K1=p.K1[:, :1], V1=p.V1[:, :1])
    assert error(delta(one, space, 0), oracle.rome(p.W, p.K1[:, 0], p.V1[:, 0], moment(p))) <= TIGHT


def test_a_vanishing_ridge_is_none() -> None:
    p = Problem.random()
    space = weighed(anywhere(p))
    assert error(delta(p, space, 1e-9), delta(p, space, 0)) <= 1e-6


def test_the_null_space_restricts_it_as_it_does_alphaedit() -> None:
    """Delta in the span of the first eigenvectors, and best among those: MEMIT of the keys that they let through."""
    p = Problem.random()
    space = weighed(NullSpace.from_moment(torch.from_numpy(moment(p)), SHARE))
    ours, projector = delta(p, space, 0.7), p.U[:, : space.n_null] @ p.U[:, : space.n_null].T
    literal = oracle.memit(p.R, projector @ p.K1, moment(p), 0.7) @ projector
    assert space.n_null == 8
    assert error(ours, literal) <= TIGHT


def test_what_is_added_costs_the_price_on_top_of_memits_own() -> None:
    p, weight = Problem.random(), 3.0
    space = weighed(NullSpace.from_moment(torch.from_numpy(moment(p)), SHARE))
    keys, none = space.coordinates(torch.from_numpy(p.K1)), torch.zeros(20, 0, dtype=torch.float64)
    solution = solve(
        keys, none, torch.from_numpy(p.R), ridge=0.7, n_null=space.n_null, search=SearchSettings(weight=weight),
        eigenvalues=space.eigenvalues,
    )  # fmt: skip
    ours = p.R @ space.combine(solution.coefficients).numpy().T
    costs = np.geomspace(0.01, 30, 20) * np.where(np.arange(20) < 8, 1, 1 + weight)
    assert error(ours, oracle.memit(p.R, p.K1, p.U @ np.diag(costs) @ p.U.T, 0.7)) <= TIGHT


@pytest.mark.parametrize("M", [0, 1, 5])
def test_kdes_constraint_leaves_earlier_keys_their_outputs(M: int) -> None:
    p = Problem.random(M=M)
    space = weighed(anywhere(p))
    new, prior = (space.coordinates(torch.from_numpy(keys)) for keys in (p.K1, p.Kp))
    solution = solve(orthogonal(new, prior), prior[:, :0], torch.from_numpy(p.R), ridge=0.7, n_null=20)
    ours = p.R @ space.combine(solution.coefficients).numpy().T
    assert error(ours, oracle.orthogonal_to(p.R, p.K1, moment(p), 0.7, p.Kp)) <= TIGHT
    assert np.abs(ours @ p.Kp).max(initial=0) <= 1e-12
    twice = orthogonal(new, torch.cat([prior, prior * 3], dim=1))  # a key that comes again bars nothing more
    assert error(twice, orthogonal(new, prior)) <= TIGHT


def test_a_key_that_earlier_ones_span_cannot_be_edited_under_kdes_constraint() -> None:
    new = torch.randn(6, 2, dtype=torch.float64)
    with pytest.raises(
        ColumnsError, match=r"keys of 1 of 2 requests lie in the span of those of 2 earlier edits \(2 of"
    ):
        orthogonal(new, torch.stack([new[:, 1] * 2, torch.ones(6, dtype=torch.float64)], dim=1))


def test_directions_without_any_key_have_no_price_and_are_refused() -> None:
    p = Problem.random()
    singular = p.U[:, 5:] @ p.U[:, 5:].T
    space = everything(NullSpace.from_moment(torch.from_numpy(singular), SHARE))
    with pytest.raises(SettingError, match=r"^layer 3: in 5 of 20 directions .* more text .* norm_weight"):
        weighed(space, what="layer 3")
    assert weighed(space, 0.1).n_null == 20
    projector = NullSpace.from_projector(torch.from_numpy(singular))
    with pytest.raises(SettingError, match="a projector alone"):
        weighed(projector)


def test_keys_that_depend_on_each_other_cannot_all_be_met() -> None:
    p = Problem.random()
    twice = p.but(K1=np.hstack([p.K1, p.K1[:, :1] * 2]), V1=np.hstack([p.V1, p.V1[:, 1:2]]))
    with pytest.raises(ColumnsError, match=r"depend on each other.*batches of their own"):
        delta(twice, weighed(anywhere(p)), 0)
