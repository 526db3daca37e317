"""Forgetting over the share of the data used for the later update (CoRSA paper, Figure 3)."""

from __future__ import annotations

from collections.abc import Sequence

from corsa_plugins.bench.protocols.shares import FORGETTING as FILE
from corsa_plugins.bench.protocols.shares import ForgettingPoint
from corsa_plugins.report.charts import Series, line_chart
from corsa_plugins.report.kinds import File, Kind, all_have, number
from corsa_plugins.report.sections.figures import Figure, figures, grouped
from corsa_plugins.report.sections.section import Section

__all__ = ["FORGETTING", "forgetting_figure"]


def forgetting_figure(points: Sequence[ForgettingPoint]) -> Figure:
    """Forgetting over the share, a line for each method."""
    series = []
    for method, own in grouped(points, "method").items():
        own = sorted(own, key=lambda point: point.share)
        ends = own if all(point.low is not None and point.high is not None for point in own) else []
        series.append(
            Series(
                method or "forgetting",
                [(100 * point.share, 100 * point.forgetting) for point in own],
                low=[100 * (point.low or 0.0) for point in ends],
                high=[100 * (point.high or 0.0) for point in ends],
            )
        )
    chart = line_chart(
        series,
        title="Forgetting over the share of data used",
        x_label="share of the data used, %",
        y_label="forgetting, points",
        span=(0.0,),
    )
    return Figure(
        "",
        chart,
        "Generality of the earlier update that was lost, in percentage points; lower is better.",
        ("method", "share, %", "forgetting, points"),
        [(point.method, 100 * point.share, 100 * point.forgetting) for point in points],
    )


def _read(file: File) -> tuple[list[ForgettingPoint], str]:
    methods = list(dict.fromkeys(str(row.get("method") or file.label) for row in file.data))
    points = []
    for row in file.data:
        method = str(row.get("method") or file.label)
        if file.is_labelled:
            method = file.label if len(methods) == 1 else f"{file.label}: {method}"
        low, high = number(row.get("low")), number(row.get("high"))
        points.append(ForgettingPoint(float(row["share"]), float(row["forgetting"]), low, high, method))
    return points, f"{len(points)} points of {', '.join(methods)}"


FORGETTING = Section(
    name="forgetting",
    title="Forgetting",
    render=lambda points: figures([forgetting_figure(points)]),
    kinds=(
        Kind(
            name="forgetting over shares of the data",
            fits=all_have("share", "forgetting"),
            read=_read,
            names=(FILE,),
            said=f"forgetting over shares of the data ({FILE})",
        ),
    ),
)
