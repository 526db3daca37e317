"""The closed form of AlphaEdit+ and the search for eigenvectors to add to the null space (AlphaEdit+ paper, 3.2).

    Delta = R K1^T P (beta Kp Lambda_p Kp^T P + K1 K1^T P + lambda I)^-1                                    (Eq. 8, 9)

Everything happens in coordinates, U^T K for the eigenvectors U of the preserved keys' second moment in ascending order
of their eigenvalues: P keeps the first ``n_null`` of them, and adding the eigenvector of the smallest eigenvalue left
is using one row more. Two forms of the same solution, :mod:`~corsa_plugins.alphaedit.solver.dual` and
:mod:`~corsa_plugins.alphaedit.solver.primal`, serve few samples and many. The first forms no d x d matrix; the second
an m x m one, for more samples than eigenvectors.

The result is linear in R: ``Delta = R (U[:, :m] Q)^T``, with the same Q for any R, so that smoothed targets, which
scale the columns of R, cost one product each. All of it is computed in float64, on the device the coordinates are on.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Annotated, Literal, Protocol, get_args

import torch
from pydantic import Field
from torch import Tensor

from corsa_plugins.alphaedit.solver.columns import ColumnsError, check_columns
from corsa_plugins.alphaedit.solver.dual import DualForm
from corsa_plugins.alphaedit.solver.primal import PrimalForm
from corsa_plugins.alphaedit.solver.ridge import check_null, check_ridge, relative_ridge
from corsa_plugins.errors import SettingError
from corsa_plugins.settings import Count, NonNegative, NonNegativeInt, Settings

__all__ = ["Form", "SearchSettings", "Solution", "relative_ridge", "solve"]

Form = Literal["auto", "dual", "primal"]


@dataclass(frozen=True)
class SearchSettings(Settings):
    """When the search for eigenvectors stops.

    Attributes:
        threshold: epsilon of Algorithm 1, as a relative reduction, (J before - J after) / J before, for each
            eigenvector. The first that lowers the objective by less is not added, and ends the search. The paper's
            values: 3.0e-4 for GPT2-XL, 1.2e-4 for GPT-J, 1.4e-4 for LLaMA3. 0 goes on for as long as there is
            anything to gain.
        block: How many eigenvectors are added and judged together, against ``block * threshold``: 1 in the paper,
            10 in the published code. A last block of fewer is held to its own number of thresholds.
        limit: The most eigenvectors to add; ``None``: all there are.
    """

    threshold: NonNegative = 1.4e-4
    block: Count = 1
    limit: Annotated[NonNegativeInt | None, Field(description="an integer of at least 0, or None for no limit")] = None


@dataclass(frozen=True)
class Solution:
    """An edit of N requests in coordinates.

    Attributes:
        rank: m, the eigenvectors in use: the null space and what the search added.
        added: How many of them the search added.
        coefficients: Q, (m, N) float64, with Delta = R (U[:, :m] Q)^T for any residual R.
        remainder: E, (N, N) float64, with R - Delta K1 = R E for any residual R.
        objective: Eq. 7 for the residual that was given: without any addition, then after each one (each block).
        refused: The relative reduction that was too small and ended the search; ``None`` if the search ended for
            another reason, or there was none.
        form: ``"dual"`` or ``"primal"``.
    """

    rank: int
    added: int
    coefficients: Tensor
    remainder: Tensor
    objective: tuple[float, ...]
    refused: float | None
    form: Literal["dual", "primal"]

    def delta_coordinates(self, residual: Tensor) -> Tensor:
        """Delta U[:, :m], (d_out, m): the change of the weights, in the basis of the eigenvectors.

        Args:
            residual: R, (d_out, N), smoothed or not.
        """
        return self._fine(residual) @ self.coefficients.T

    def residual_after(self, residual: Tensor, applied: Tensor | None = None) -> Tensor:
        """R - Delta K1, (d_out, N): what the edit leaves of the residual.

        Args:
            residual: R, (d_out, N), to the targets.
            applied: The residual that Delta is made from, if it is another: to the smoothed targets. By default the
                same.
        """
        full = self._fine(residual)
        if applied is None:
            return full @ self.remainder
        part = self._fine(applied)
        return full - part + part @ self.remainder

    def _fine(self, residual: Tensor) -> Tensor:
        return residual.to(self.remainder)


class _Growing(Protocol):
    rank: int
    objective: float

    def propose(self, count: int) -> float: ...
    def accept(self) -> None: ...
    def finish(self) -> tuple[Tensor, Tensor]: ...


@torch.no_grad()
def solve(
    new: Tensor,
    prior: Tensor,
    residual: Tensor,
    *,
    ridge: float,
    n_null: int,
    search: SearchSettings | None = None,
    form: Form = "auto",
) -> Solution:
    """Eq. 8, after the search of Algorithm 1 (lines 4-10) unless it is off.

    Args:
        new: (d, N), coordinates of the new keys K1, N at least 1.
        prior: (d, M), coordinates of the keys of earlier edits, times (beta Lambda_p)^(1/2); M may be 0.
        residual: (d_out, N). The search judges by this one: in Algorithm 1, that of the targets at t = 0. The
            coefficients of the result serve any other.
        ridge: lambda, over 0.
        n_null: How many rows of the coordinates are in the null space, 0 to d.
        search: When to stop adding eigenvectors; ``None`` adds none.
        form: ``"dual"`` works with (N + M) x (N + M) matrices, ``"primal"`` with m x m; the results are equal up to
            rounding. ``"auto"`` takes the dual unless there are more samples than eigenvectors the result could use.

    Raises:
        ColumnsError: Shapes that do not match, NaN or infinity, no request, or a ridge lost beside the keys.
        SettingError: ``ridge``, ``n_null`` or ``form`` is out of its range.
    """
    d = _check(new, prior, residual, ridge, n_null, form)
    new = new.to(torch.float64)
    prior, residual = prior.to(new), residual.to(new)
    reach = n_null if search is None else min(d, n_null + (d if search.limit is None else search.limit))
    samples = new.shape[1] + prior.shape[1]
    kind: Literal["dual", "primal"] = ("dual" if samples <= reach else "primal") if form == "auto" else form
    if residual.shape[0] > residual.shape[1]:
        # Only R^T R counts, and the triangular factor of R has the same with N rows instead of d_out.
        residual = torch.linalg.qr(residual, mode="r").R
    growing: _Growing = (DualForm if kind == "dual" else PrimalForm)(new, prior, residual, float(ridge), n_null)
    objective, refused = [growing.objective], None
    if not isfinite(growing.objective):
        raise ColumnsError("residual: numbers so large that their squares leave the range of float64")
    if search is not None:
        refused = _search(growing, reach, search, objective)
    coefficients, remainder = growing.finish()
    return Solution(
        rank=growing.rank,
        added=growing.rank - n_null,
        coefficients=coefficients,
        remainder=remainder,
        objective=tuple(objective),
        refused=refused,
        form=kind,
    )


def _search(growing: _Growing, reach: int, settings: SearchSettings, objective: list[float]) -> float | None:
    """Add eigenvectors up to the rank ``reach`` while they lower the objective enough; the reduction that did not."""
    while growing.rank < reach:
        before = growing.objective
        count = min(settings.block, reach - growing.rank)
        fall = growing.propose(count)
        reduction = fall / before if before > 0 else 0.0
        # Nothing gained is a stop at a threshold of 0 too: "if the total value is not reduced" (3.2).
        if not before - fall < before or reduction < count * settings.threshold:
            return reduction
        growing.accept()
        objective.append(growing.objective)
    return None


def _check(new: Tensor, prior: Tensor, residual: Tensor, ridge: float, n_null: int, form: str) -> int:
    check_columns(new, "new keys")
    d, n = new.shape
    if not n:
        raise ColumnsError("there is no request to edit: the new keys have no columns")
    check_columns(prior, "prior keys", d)
    check_columns(residual, "residual")
    if residual.shape[1] != n:
        raise ColumnsError(f"residual: {residual.shape[1]} columns for {n} new keys; there must be one for each")
    check_ridge(ridge)
    check_null(n_null, d)
    if form not in get_args(Form):
        raise SettingError(f"form is {form!r}: it must be one of {', '.join(get_args(Form))}")
    return d
