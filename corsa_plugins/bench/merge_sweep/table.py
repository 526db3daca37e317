"""A sweep as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from corsa_plugins.bench.evaluation.metrics import Metric, Shown, select_metrics
from corsa_plugins.bench.merge_sweep.points import SweepPoint

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["sweep_table"]


def sweep_table(points: Sequence[SweepPoint], best: SweepPoint | None = None, floor: float | None = None) -> Table:
    """A row per point: base first, the edited model last, the best marked with a star. Shares in percent."""
    from rich.table import Table

    title = f"{len(points)} points" + ("" if floor is None else f"; * best that retains {100 * floor:g} %")
    table = Table(title=title)
    compared = select_metrics(of=None, shown=Shown.COMPARED)
    metrics = [metric for metric in compared if all(metric.name in point.metrics for point in points)]
    headings = (metric.heading[:1].upper() + metric.heading[1:] for metric in metrics)
    for heading in ("", "weight", "density", *headings, "Retained"):
        table.add_column(heading, justify="right")
    for point in sorted(points, key=lambda point: (point.density, point.weight)):
        kind = "base" if not (point.weight and point.density) else "*" if point == best else ""
        kind = kind or ("edited" if point.weight == point.density == 1 else "")
        cells = [_cell(point.metrics[metric.name], metric) for metric in metrics]
        table.add_row(kind, f"{point.weight:g}", f"{point.density:g}", *cells, f"{100 * point.retained:.1f}")
    return table


def _cell(mean: float, metric: Metric) -> str:
    return f"{100 * mean:.1f}" if metric.percent else f"{mean:.2f}"
