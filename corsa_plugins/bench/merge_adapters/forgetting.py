"""What each adapter's requests lost by a merge: the adapter alone and the merged one answer them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from corsa_plugins.bench.evaluation import Evaluation, compare, save_evaluation
from corsa_plugins.bench.evaluation.metrics import Shown, select_metrics

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["AdapterForgetting", "forgetting_table", "save_forgetting"]


@dataclass(frozen=True)
class AdapterForgetting:
    """What one adapter's requests lost by the merge.

    Attributes:
        own: The evaluation with that adapter alone.
        merged: The same questions to the merged adapter.
    """

    own: Evaluation
    merged: Evaluation


def save_forgetting(forgetting: Sequence[AdapterForgetting], folder: str | os.PathLike[str]) -> None:
    """Every prompt and answer, as ``ADAPTER/own`` and ``ADAPTER/merged`` in ``folder``.

    Raises:
        OSError: A file cannot be written.
    """
    for index, adapter in enumerate(forgetting):
        own = Path(folder) / f"{index}-{adapter.own.label}"
        save_evaluation(adapter.own, own / "own")
        save_evaluation(adapter.merged, own / "merged")


def forgetting_table(forgetting: Sequence[AdapterForgetting]) -> Table:
    """A row per adapter and metric: the adapter alone minus the merged one, points, with 95 % intervals."""
    from rich.table import Table

    table = Table(title="forgetting: the adapter alone minus the merged one, points, with 95 % intervals")
    for heading in ("", "requests", "metric", "alone, %", "merged, %", "forgetting"):
        table.add_column(heading, justify="right")
    for adapter in forgetting:
        changes = compare(adapter.own, adapter.merged)
        for metric in select_metrics(shown=Shown.EVERYWHERE):
            if metric.percent and metric.name in changes:
                change = changes[metric.name]
                lost = change.difference
                forgotten = (0.0 - 100 * value for value in (lost.mean, lost.high, lost.low))
                interval = "{:.1f}  [{:.1f}, {:.1f}]".format(*forgotten)
                means = (f"{100 * change.before.mean:.1f}", f"{100 * change.after.mean:.1f}")
                table.add_row(adapter.own.label, str(len(adapter.own.records)), metric.heading, *means, interval)
    return table
