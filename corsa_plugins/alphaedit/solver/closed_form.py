"""The closed form of AlphaEdit+ and the search for eigenvectors to add to the null space (AlphaEdit+ paper, 3.2).

    Delta = R K1^T P (beta Kp Lambda_p Kp^T P + K1 K1^T P + lambda I)^-1                                    (Eq. 8, 9)

Everything happens in coordinates, U^T K for the eigenvectors U of the preserved keys' second moment in ascending order
of their eigenvalues: P keeps the first ``n_null`` of them, and adding the eigenvector of the smallest eigenvalue left
is using one row more, or part of it (:mod:`~corsa_plugins.alphaedit.solver.price`). Two forms of the same solution,
:mod:`~corsa_plugins.alphaedit.solver.dual` and :mod:`~corsa_plugins.alphaedit.solver.primal`, serve few samples and
many. The first forms no d x d matrix; the second an m x m one, for more samples than eigenvectors.

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
from corsa_plugins.alphaedit.solver.price import Proposal, edge, grades
from corsa_plugins.alphaedit.solver.primal import PrimalForm
from corsa_plugins.alphaedit.solver.ridge import check_null, check_ridge, relative_ridge
from corsa_plugins.errors import SettingError
from corsa_plugins.settings import Count, NonNegative, NonNegativeInt, Settings

__all__ = ["Form", "SearchSettings", "Solution", "relative_ridge", "solve"]

WEIGHT = 16.0
"""Of what is preserved, by default; at it AlphaEdit+ is not behind AlphaEdit without conflicts either."""

Form = Literal["auto", "dual", "primal"]
Rule = Literal["graded", "price", "threshold"]


@dataclass(frozen=True)
class SearchSettings(Settings):
    """Which eigenvectors are added to the null space, and how far.

    Attributes:
        threshold: epsilon of Algorithm 1, as a relative reduction, (J before - J after) / J before, for each
            eigenvector. The first that lowers the objective by less is not added, and ends the search. The paper's
            values, 3.0e-4 for GPT2-XL, 1.2e-4 for GPT-J and 1.4e-4 for LLaMA3, do not carry over to other widths: on
            narrow models they add everything. 0 goes on for as long as there is anything to gain.
        block: How many eigenvectors are added and judged together, against ``block * threshold``: 1 in the paper,
            10 in the published code. A last block of fewer is held to its own number of thresholds.
        limit: The most eigenvectors to add; ``None``: all there are.
        rule: ``"graded"``: every eigenvector, each by the share s_0 / (s_0 + weight s_u) that what it costs the
            preserved keys leaves of it, which is the best edit at that price; s_u is its eigenvalue, and s_0 the
            largest in the null space. ``"price"``: whole, in ascending order, up to the first (the first block) that
            costs more than it gains. ``"threshold"``: whole, by ``threshold``, as in the paper. ``None``:
            by the threshold where one is given, else graded.
        weight: Of what is preserved against what is edited, for the rules that go by the price: c in units of
            lambda / s_0. 0 holds nothing back.
    """

    threshold: Annotated[NonNegative | None, Field(description="a number of at least 0, or None to go by price")] = None
    block: Count = 1
    limit: Annotated[NonNegativeInt | None, Field(description="an integer of at least 0, or None for no limit")] = None
    rule: Rule | None = None
    weight: NonNegative = WEIGHT

    def check(self) -> None:
        if self.rule == "threshold" and self.threshold is None:
            raise self.refused("threshold", "for rule='threshold' it must be a number, such as 1.4e-4 for LLaMA3")
        if self.rule not in (None, "threshold") and self.threshold is not None:
            raise self.refused("threshold", f"rule={self.rule!r} goes by price: leave the threshold out")
        if self.threshold is not None and self.weight != WEIGHT:
            raise self.refused("weight", "it counts where the price decides: leave the threshold out, or the weight")

    @property
    def decides(self) -> Rule:
        """The rule that is followed."""
        return self.rule or ("graded" if self.threshold is None else "threshold")


@dataclass(frozen=True)
class Solution:
    """An edit of N requests in coordinates.

    Attributes:
        rank: m, the eigenvectors in use: the null space and what the search added.
        added: How many of them the search added.
        grades: (m,) float64, the weights of P_mod, how far each eigenvector is in use: 1 in the null space, and beyond
            it too unless the rule was to grade them.
        coefficients: Q, (m, N) float64, with Delta = R (U[:, :m] Q)^T for any residual R.
        remainder: E, (N, N) float64, with R - Delta K1 = R E for any residual R.
        objective: Eq. 7 for the residual that was given: without any addition, then after each one (each block); where
            they are graded, after all of them, with their price.
        refused: The relative reduction that did not do and ended the search; ``None`` if the search ended for another
            reason, or there was none.
        form: ``"dual"`` or ``"primal"``.
    """

    rank: int
    added: int
    grades: Tensor
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
    ridge: float
    objective: float

    def propose(self, count: int) -> Proposal: ...
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
    eigenvalues: Tensor | None = None,
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
        search: Which eigenvectors to add; ``None`` adds none.
        eigenvalues: (d,) ascending, of the preserved keys' second moment; needed where the price decides.
        form: ``"dual"`` works with (N + M) x (N + M) matrices, ``"primal"`` with m x m; the results are equal up to
            rounding. ``"auto"`` takes the dual unless there are more samples than eigenvectors the result could use.

    Raises:
        ColumnsError: Shapes that do not match, NaN or infinity, no request, or a ridge lost beside the keys.
        SettingError: ``ridge``, ``n_null`` or ``form`` is out of its range, or the price cannot be told.
    """
    d = _check(new, prior, residual, ridge, n_null, form)
    new = new.to(torch.float64)
    prior, residual = prior.to(new), residual.to(new)
    reach = n_null if search is None else min(d, n_null + (d if search.limit is None else search.limit))
    samples = new.shape[1] + prior.shape[1]
    kind: Literal["dual", "primal"] = ("dual" if samples <= reach else "primal") if form == "auto" else form
    grow = DualForm if kind == "dual" else PrimalForm
    if residual.shape[0] > residual.shape[1]:
        # Only R^T R counts, and the triangular factor of R has the same with N rows instead of d_out.
        residual = torch.linalg.qr(residual, mode="r").R
    growing: _Growing = grow(new, prior, residual, float(ridge), n_null)
    objective, refused = [growing.objective], None
    if not isfinite(growing.objective):
        raise ColumnsError("residual: numbers so large that their squares leave the range of float64")
    parts = new.new_ones(reach)
    if search is not None and reach > n_null:
        spectrum = _spectrum(search, eigenvalues, d, n_null).to(new)
        if search.decides == "graded":
            parts = grades(spectrum, n_null, search.weight)[:reach]
            root = parts.sqrt()[:, None]
            growing = grow(new[:reach] * root, prior[:reach] * root, residual, float(ridge), reach)
            objective.append(growing.objective)
        else:
            refused = _search(growing, reach, search, spectrum, objective)
    coefficients, remainder = growing.finish()
    parts = parts[: growing.rank]
    return Solution(
        rank=growing.rank,
        added=growing.rank - n_null,
        grades=parts,
        coefficients=coefficients * parts.sqrt()[:, None],
        remainder=remainder,
        objective=tuple(objective),
        refused=refused,
        form=kind,
    )


def _search(
    growing: _Growing, reach: int, settings: SearchSettings, eigenvalues: Tensor, objective: list[float]
) -> float | None:
    """Add eigenvectors up to the rank ``reach`` while they gain enough; the relative reduction that was not enough.

    The first that does not ends it, under either rule, as in Algorithm 1: what follows costs more and is seldom worth
    it, and the eigenvectors in use stay the first ones of the basis.
    """
    rank = growing.rank
    while growing.rank < reach:
        before, start = growing.objective, growing.rank
        count = min(settings.block, reach - start)
        proposal = growing.propose(count)
        reduction = proposal.gain / before if before > 0 else 0.0
        if settings.decides == "price":
            # c = weight lambda / s_0, multiplied out: nothing is divided by where the null space holds no energy at all
            price = settings.weight * growing.ridge * proposal.moved(eigenvalues[start : start + count].clamp(min=0.0))
            enough = price <= edge(eigenvalues, rank) * proposal.gain
        else:
            assert settings.threshold is not None
            enough = reduction >= count * settings.threshold
        # Nothing gained is a stop at a threshold of 0 too: "if the total value is not reduced" (3.2).
        if not before - proposal.gain < before or not enough:
            return reduction
        growing.accept()
        objective.append(growing.objective)
    return None


def _spectrum(search: SearchSettings, eigenvalues: Tensor | None, d: int, n_null: int) -> Tensor:
    """The eigenvalues, checked where they decide."""
    if search.decides == "threshold":
        return torch.zeros(d)
    if eigenvalues is None or tuple(eigenvalues.shape) != (d,) or not eigenvalues.isfinite().all():
        raise SettingError(f"search goes by the price of eigenvectors: give solve() their {d} eigenvalues, all finite")
    if not n_null:
        raise SettingError("search goes by the price of what is in the null space, and there is nothing: widen it")
    return eigenvalues


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
