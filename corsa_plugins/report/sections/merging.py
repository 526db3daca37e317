"""Forgetting by merging two adapters, over the weights (CoRSA paper, Figure 6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from corsa_plugins.bench.merge_adapters import OVER_WEIGHTS
from corsa_plugins.report.charts import Series, line_chart
from corsa_plugins.report.kinds import File, Kind, all_have
from corsa_plugins.report.sections.figures import Figure, figures, grouped
from corsa_plugins.report.sections.section import Section

__all__ = ["MERGING", "MergeRow", "merging_figure"]


class MergeRow(NamedTuple):
    """Two adapters with one pair of weights: which share of the weights the first has, and what was forgotten."""

    method: str
    part: float
    metric: str
    first: float
    second: float
    union: float
    low: float
    high: float


def merging_figure(rows: Sequence[MergeRow]) -> Figure:
    """Forgetting on the union over the first adapter's part, a line for each method."""
    series = []
    for method, own in grouped(rows, "method").items():
        own = sorted(own, key=lambda row: row.part)
        series.append(
            Series(
                method,
                [(100 * row.part, 100 * row.union) for row in own],
                low=[100 * row.low for row in own],
                high=[100 * row.high for row in own],
            )
        )
    chart = line_chart(
        series,
        title="Forgetting by merging two adapters",
        x_label="the first adapter's part of the weights, %",
        y_label="forgetting on both sets, points",
        span=(0.0,),
    )
    return Figure(
        "",
        chart,
        f"{rows[0].metric.capitalize()} of each adapter alone minus the merged one's, in percentage points, over the "
        "facts of both; lower is better.",
        ("method", "first, % of the weights", "first, points", "second, points", "both, points"),
        [(row.method, 100 * row.part, 100 * row.first, 100 * row.second, 100 * row.union) for row in rows],
    )


def _read(file: File) -> tuple[list[MergeRow], str]:
    rows = []
    for row in file.data:
        first, second = (float(weight) for weight in row["weights"])
        part = first / (first + second) if first + second else 0.5
        one, other, both = (float(row[name]["mean"]) for name in ("first", "second", "union"))
        method = file.label if file.is_labelled else str(row["method"])
        low, high = float(row["union"]["low"]), float(row["union"]["high"])
        rows.append(MergeRow(method, part, str(row["metric"]), one, other, both, low, high))
    return rows, f"{len(rows)} pairs of weights"


MERGING = Section(
    name="merging",
    title="Merged adapters",
    render=lambda rows: figures([merging_figure(rows)]),
    kinds=(
        Kind(
            name="forgetting by merging",
            fits=all_have("weights", "union"),
            read=_read,
            names=(OVER_WEIGHTS,),
            said=f"forgetting by merging over weights ({OVER_WEIGHTS})",
        ),
    ),
)
