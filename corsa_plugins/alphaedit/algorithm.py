"""Algorithm 1 of AlphaEdit+ at one layer: from keys, targets, a null space and earlier edits to an update.

Liu et al., "AlphaEdit+: Model Editing in the Presence of Conflicting and Inconsistent Knowledge", section 3. Everything
here is a function of its arguments; what reads a model and what writes to one is elsewhere. By lines of the algorithm::

     1      prior_weighting     Lambda_p of Eq. 7
     2      NullSpace           the eigenvectors of K0 K0^T in ascending order of their eigenvalues, once for a model
     3, 17  beta, residual      beta(t), and R^t = V_1^t - W K1, of Eq. 7
     4-10   relax               P_mod, and what Eq. 8 and 9 have in common
    12, 15  update              Eq. 8, t = 0
    18      update              Eq. 9, t > 0
    11-21   algorithm_1         all of it, with the choice of t

An update is two factors, Delta = left right^T: the left one is R^t, and the right one is the same for every t. With the
three parts of AlphaEdit+ off it is AlphaEdit's (Eq. 2). In a space where directions are as long as they are cheap
(:mod:`~corsa_plugins.alphaedit.solver.weighed`) the same lines give MEMIT's update, and at lambda = 0 ROME's.

Beyond the algorithm as printed: unless a threshold is given, what an eigenvector costs the preserved keys decides how
far it is added, and P~ is no projector then (:mod:`~corsa_plugins.alphaedit.solver.price`); of several layers each
takes a share of what is missing (MEMIT, Meng et al. 2023); which requests are inconsistent is told from all of it, not
from the share; earlier edits have a weight (beta of A.5); the same residuals may be asked of further keys of the
requests, and further keys may be held where they are (:mod:`~corsa_plugins.alphaedit.lookup.wider`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from corsa_plugins.alphaedit.settings import AlphaEditSettings
from corsa_plugins.alphaedit.solver.closed_form import Solution, relative_ridge, solve
from corsa_plugins.alphaedit.solver.conflict import prior_weights
from corsa_plugins.alphaedit.solver.exact import solve_exactly
from corsa_plugins.alphaedit.solver.nullspace import NullSpace
from corsa_plugins.alphaedit.solver.orthogonal import orthogonal
from corsa_plugins.alphaedit.solver.smoothing import SmoothingChoice, select_smoothing, smoothing

__all__ = [
    "LayerEdit",
    "LayerProblem",
    "Relaxed",
    "Update",
    "algorithm_1",
    "beta",
    "prior_weighting",
    "relax",
    "residual",
    "update",
]


@dataclass(frozen=True)
class LayerProblem:
    """N requests to edit at one layer, at the weights W it has now.

    Attributes:
        keys: K1, (d_in, N).
        inconsistency: V1 - W K1, (d_out, N) float64: all that is missing to the targets.
        prior_keys: Kp, (d_in, M), on the device of ``keys``; M may be 0.
        space: Of the preserved keys K0: P, and the eigenvectors that can be added to it, as long as they are cheap.
        position: Of the layer among the edited ones, counted from 1.
        n_layers: How many layers are edited.
        further_keys: (d_in, N) each: other keys of the same requests, which are to have the same residuals.
        held_keys: (d_in, H), times the square roots of their weights: of nothing that was edited, to stay where they
            are; ``None``: none.
    """

    keys: Tensor
    inconsistency: Tensor
    prior_keys: Tensor
    space: NullSpace
    position: int = 1
    n_layers: int = 1
    further_keys: Sequence[Tensor] = ()
    held_keys: Tensor | None = None


class Update(NamedTuple):
    """Delta = left right^T, (d_out, d_in).

    Attributes:
        left: R^t, (d_out, N).
        right: (d_in, N).
    """

    left: Tensor
    right: Tensor


@dataclass(frozen=True)
class Relaxed:
    """What line 10 leaves behind: the same for every smoothed target.

    Attributes:
        right: (d_in, N), with Delta = R right^T for any residual R.
        ridge: lambda, absolute.
        solution: In coordinates: the eigenvectors in use, and the objective along the search.
    """

    right: Tensor
    ridge: float
    solution: Solution


@dataclass(frozen=True)
class LayerEdit:
    """The result of Algorithm 1.

    Attributes:
        update: Delta_+.
        smoothing: beta(t) of Eq. 7, (N,), that it was made with.
        prior_weighting: The diagonal of Lambda_p, (M,).
        relaxed: The null space it was made in.
        choice: Of t, with the validation scores; ``None`` where no request was smoothed.
    """

    update: Update
    smoothing: Tensor
    prior_weighting: Tensor
    relaxed: Relaxed
    choice: SmoothingChoice | None


def algorithm_1(problem: LayerProblem, settings: AlphaEditSettings, validate: Callable[[Update], float]) -> LayerEdit:
    """Algorithm 1, all of it.

    Args:
        problem: The inputs.
        settings: lambda, beta, epsilon, tau_r, T and delta, and which of the three parts are on.
        validate: val_score of an update, higher is better; asked for nothing where no request is smoothed.

    Raises:
        ColumnsError, SettingError: Keys or residuals that cannot be computed with, or no ridge to be had from them.
        SmoothingError: A validation score is NaN.
        Whatever ``validate`` raises.
    """
    weighting = prior_weighting(problem, settings)  # line 1; of 2 the null space comes ordered
    relaxed = relax(problem, weighting, settings)  # 3-10
    choice = None
    if settings.smoothing is not None and bool(beta(problem, 0, settings).any()):  # 11
        # 15-20
        choice = select_smoothing(lambda t: validate(update(problem, relaxed, t, settings)), settings.smoothing)
    t = choice.t if choice is not None else 0
    return LayerEdit(
        update=update(problem, relaxed, t, settings),  # 12, 21
        smoothing=beta(problem, t, settings),
        prior_weighting=weighting,
        relaxed=relaxed,
        choice=choice,
    )


def prior_weighting(problem: LayerProblem, settings: AlphaEditSettings) -> Tensor:
    """The diagonal of Lambda_p, (M,): 1 - |s(k_j, K1)| for each earlier edit (Eq. 7; line 1); ones in AlphaEdit."""
    if settings.conflict_weights:
        return prior_weights(problem.prior_keys, problem.keys)
    return problem.prior_keys.new_ones(problem.prior_keys.shape[1])


def beta(problem: LayerProblem, t: int, settings: AlphaEditSettings) -> Tensor:
    """beta(t) of Eq. 7, (N,) float64: how far each target is moved back to what the model puts out now."""
    norms = problem.inconsistency.norm(dim=0)
    return torch.zeros_like(norms) if settings.smoothing is None else smoothing(norms, t, settings.smoothing)


def residual(problem: LayerProblem, t: int, settings: AlphaEditSettings) -> Tensor:
    """R^t = V_1^t - W K1 (Eq. 7; lines 3 and 17), (d_out, N): the layer's share, to targets smoothed to step t."""
    share = problem.inconsistency
    if settings.residuals == "spread":
        share = share / (problem.n_layers - problem.position + 1)
    return share * (1 - beta(problem, t, settings))


def relax(problem: LayerProblem, weighting: Tensor, settings: AlphaEditSettings) -> Relaxed:
    """Add eigenvectors to the null space where they are worth it, by Eq. 7 at t = 0, and solve Eq. 8 (lines 3-10).

    Args:
        problem: The inputs.
        weighting: The diagonal of Lambda_p.
        settings: lambda, epsilon and the weight of earlier edits; without a search, and where eigenvectors have no
            order, P_mod is P.
    """
    space = problem.space
    keys = [problem.keys, *problem.further_keys]
    new = space.coordinates(torch.cat(keys, dim=1))
    prior_weight = settings.prior_weight * (problem.position if settings.prior_weight_by_layer else 1)
    if settings.prior_outputs == "kept":
        new = orthogonal(new, space.coordinates(problem.prior_keys))
    spared = problem.prior_keys if prior_weight else problem.prior_keys[:, :0]
    prior = space.coordinates(spared) * (prior_weight * weighting[: spared.shape[1]].double()).sqrt()
    ridge = settings.ridge
    if settings.ridge_unit == "relative":
        ridge = relative_ridge(settings.ridge, new[:, : problem.keys.shape[1]], space.n_null)
    if problem.held_keys is not None:
        prior = torch.cat([prior, space.coordinates(problem.held_keys)], dim=1)
    wanted = residual(problem, 0, settings).repeat(1, len(keys))
    if ridge == 0:
        solution = solve_exactly(new, wanted)
    else:
        search = settings.search if space.ordered else None
        spectrum = space.eigenvalues
        solution = solve(new, prior, wanted, ridge=ridge, n_null=space.n_null, search=search, eigenvalues=spectrum)
    # Every request has the same residual at all of its keys: Delta = R (Q_1 + Q_2 + ...)^T.
    coefficients = solution.coefficients.unflatten(1, (len(keys), -1)).sum(1)
    return Relaxed(space.combine(coefficients), ridge, solution)


def update(problem: LayerProblem, relaxed: Relaxed, t: int, settings: AlphaEditSettings) -> Update:
    """Delta_+^(t) (Eq. 8 at t = 0, Eq. 9 beyond): linear in R^t, so that nothing is solved again."""
    return Update(residual(problem, t, settings), relaxed.right)
