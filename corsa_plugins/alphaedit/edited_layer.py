"""A layer that was edited: what is in its weight, and what the solve did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from corsa_plugins.alphaedit.algorithm import LayerEdit, LayerProblem, Update
from corsa_plugins.alphaedit.report import LayerReport
from corsa_plugins.alphaedit.solver.nullspace import NullSpace

__all__ = ["EditedLayer", "joined_layers", "joined_updates", "layer_report"]


@dataclass(frozen=True)
class EditedLayer:
    """A layer whose weight has the update.

    Attributes:
        targets: V1, (d_out, N), that the edit went by.
        update: As it is in the weight, in main memory and in the precision it is kept in.
        smoothing: beta(t), (N,).
        report: What the solve did.
    """

    targets: Tensor
    update: Update
    smoothing: Tensor
    report: LayerReport


def joined_layers(parts: Sequence[EditedLayer]) -> EditedLayer:
    """Edits of one layer that were made one after the other, as one; the report is the first one's, in sum."""
    reports = [part.report for part in parts]
    before, after = (sum(report.objective[i] for report in reports) for i in (0, 1))
    return EditedLayer(
        targets=torch.cat([part.targets for part in parts], dim=1),
        update=joined_updates([part.update for part in parts]),
        smoothing=torch.cat([part.smoothing for part in parts]),
        report=replace(reports[0], objective=(before, after), experts=_together([each.experts for each in reports])),
    )


def _together(experts: Sequence[tuple[int, ...] | None]) -> tuple[int, ...] | None:
    known = [each for each in experts if each is not None]
    return tuple(sorted({expert for each in known for expert in each})) if known else None


def joined_updates(updates: Sequence[Update]) -> Update:
    """Their sum."""
    return Update(*(torch.cat(factors, dim=1) for factors in zip(*updates, strict=True)))


def layer_report(
    layer: int, problem: LayerProblem, edit: LayerEdit, barred: NullSpace | None, experts: int = 1
) -> LayerReport:
    """What the solve did at one layer.

    Args:
        layer: The block.
        problem: What was solved.
        edit: What came of it.
        barred: The null space, beyond which edits do not write; ``None`` where they write anywhere, at a price.
        experts: How many maps lie side by side in the layer.
    """
    solution, choice = edit.relaxed.solution, edit.choice
    return LayerReport(
        layer=layer,
        width=problem.space.d,
        null_space=problem.space.n_null,
        added=solution.added,
        graded=float(solution.grades[problem.space.n_null :].sum()),
        protected=None if barred is None else _protected(barred, solution.grades),
        ridge=edit.relaxed.ridge,
        objective=(solution.objective[0], solution.objective[-1]),
        prior_weight=float(edit.prior_weighting.mean()) if len(edit.prior_weighting) else None,
        smoothing_step=choice.t if choice else None,
        validation_scores=tuple(choice.scores) if choice else (),
        experts=_experts(edit.update, experts),
    )


def _experts(update: Update, count: int) -> tuple[int, ...] | None:
    """Those, of ``count`` side by side, whose weights the update changes; ``None`` if there is but one."""
    if count == 1:
        return None
    changed = update.right.unflatten(0, (count, -1)).abs().amax(dim=(1, 2)) > 0
    return tuple(changed.nonzero()[:, 0].tolist())


def _protected(space: NullSpace, grades: Tensor) -> tuple[float, float] | None:
    before, after = space.protected(), space.protected(grades)
    return None if before is None or after is None else (before, after)
