"""The charts of a page: lines with marks and labels at their ends, and histograms.

Series are told apart by the shape of their marks, by dashes and by labels at their ends; colour (from the page's style
sheet, which knows light and dark) only adds to it. Numbers that are not finite are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from corsa_plugins.drawing import UNITS, css, inline_svg, new_figure
from corsa_plugins.report.render import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Series", "histogram", "line_chart", "ticks"]

WIDTH, HEIGHT = 420, 280
LEFT, RIGHT, TOP, BOTTOM = 48, 106, 14, 42
MARKS = "os^DvP"
"""Shapes of marks, one for each kind of line in the style sheet: its dashes and its colour. Then they repeat."""

MOST_MARKS = 12
"""On one line: a mark on every point of a long one would be a bar of ink."""

_LABEL_LENGTH, _LABEL_HEIGHT = 14, 13


@dataclass(frozen=True)
class Series:
    """Points of one kind.

    Attributes:
        label: Written at the last point.
        points: (x, y) pairs, joined in this order.
        low, high: Ends of an interval at each point, or empty.
        joined: Whether a line joins the points.
        notes: A text for each point, shown where the pointer rests on it; or empty.
        star: Draw the points as stars, to point one out.
    """

    label: str
    points: Sequence[tuple[float, float]]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    joined: bool = True
    notes: Sequence[str] = ()
    star: bool = False


@dataclass(frozen=True)
class _Label:
    """What is written at a line's end, which is at (x, y) in data."""

    x: float
    y: float
    text: str
    kind: int
    marker: str


def line_chart(
    series: Sequence[Series], *, title: str, x_label: str, y_label: str, span: Sequence[float] = ()
) -> Markup:
    """A chart of one or more series over common axes; empty if there is no point.

    Args:
        series: What to draw; points that are not finite are left out.
        title: Says what is to be seen, for those who do not see it.
        x_label, y_label: With their units.
        span: Values that the y axis takes in, whatever the points are.
    """
    drawn = [(kind % len(MARKS), line, _finite_points(line)) for kind, line in enumerate(series)]
    points = [line.points[index] for _, line, indices in drawn for index in indices]
    ends = [value for line in series for value in (*line.low, *line.high) if math.isfinite(value)]
    if not points:
        return Markup()
    figure, axes = _axes([x for x, _ in points], [*(y for _, y in points), *ends, *span], x_label, y_label)
    labels: list[_Label] = []
    notes: dict[str, list[str]] = {}
    for kind, line, indices in drawn:
        if not indices:
            continue
        xs, ys = zip(*(line.points[index] for index in indices), strict=True)
        for index in indices:
            if index < len(line.low) and math.isfinite(line.low[index]) and math.isfinite(line.high[index]):
                x = line.points[index][0]
                _plot(axes, [x, x], [line.low[index], line.high[index]], css(f"err k{kind}"))
        if line.joined and len(indices) > 1:
            _plot(axes, xs, ys, css(f"line k{kind}"))
        marker = "*" if line.star else MARKS[kind]
        marked = _marked(len(indices))
        _plot(axes, [xs[i] for i in marked], [ys[i] for i in marked], css(f"mark k{kind}"), marker)
        own_notes = (line.notes[indices[i]] if line.notes else "" for i in marked)
        notes.setdefault(f"mark k{kind}", []).extend(map(_one_line, own_notes))
        labels.append(_Label(xs[-1], ys[-1], _one_line(line.label), kind, marker))
    notes["label"] = _write_labels(figure, axes, labels)
    return Markup(inline_svg(figure, title=_one_line(title), notes=notes))


def histogram(groups: Sequence[tuple[str, Sequence[float]]], *, title: str, x_label: str, bins: int = 20) -> Markup:
    """Shares of each group's values over common bins: bars for one group, stepped outlines for more; empty of none."""
    kept = [(label, [value for value in values if math.isfinite(value)]) for label, values in groups]
    kept = [(label, values) for label, values in kept if values]
    if not kept:
        return Markup()
    low, high = _widened(min(min(values) for _, values in kept), max(max(values) for _, values in kept))
    width = (high - low) / bins
    edges = [low + width * index for index in range(bins + 1)]
    shares = [_shares(values, low, width, bins) for _, values in kept]
    heights = [0.0, *(share for row in shares for share in row)]
    figure, axes = _axes([low, high], heights, x_label, "share of requests, %")
    labels = []
    for index, ((label, values), row) in enumerate(zip(kept, shares, strict=True)):
        kind = index % len(MARKS)
        classes = css(f"{'bars' if len(kept) == 1 else 'line'} k{kind}")
        axes.stairs(row, edges, baseline=0, fill=len(kept) == 1, gid=classes, clip_on=False)
        tallest = max(range(bins), key=row.__getitem__)
        if len(kept) > 1:  # a mark on the outline leads to the label
            middle = (edges[tallest] + edges[tallest + 1]) / 2
            _plot(axes, [middle], [row[tallest]], css(f"mark k{kind}"), MARKS[kind])
        text = _one_line(label) or f"median {sorted(values)[len(values) // 2]:.3g}"
        labels.append(_Label(edges[tallest + 1], row[tallest], text, kind, MARKS[kind]))
    notes = {"label": _write_labels(figure, axes, labels)}
    return Markup(inline_svg(figure, title=_one_line(title), notes=notes))


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover [low, high]: the first is at most ``low``, the last at least ``high``."""
    from matplotlib.ticker import MaxNLocator

    locator = MaxNLocator(count, steps=[1, 2, 2.5, 5, 10])
    return [float(tick) for tick in locator.tick_values(*_widened(low, high))]


def _widened(low: float, high: float) -> tuple[float, float]:
    """The range, or one around its only value."""
    room = 0 if high > low else max(0.5, abs(low) / 2)
    return low - room, high + room


def _finite_points(line: Series) -> list[int]:
    return [index for index, (x, y) in enumerate(line.points) if math.isfinite(x) and math.isfinite(y)]


def _marked(count: int) -> list[int]:
    """Which of so many points have a mark: evenly many, and the last."""
    stride = -(-count // MOST_MARKS)
    return sorted({*range(0, count, stride), count - 1})


def _shares(values: Sequence[float], low: float, width: float, bins: int) -> list[float]:
    """Percent of the values in each bin."""
    row = [0.0] * bins
    for value in values:
        row[min(bins - 1, int((value - low) / width))] += 100 / len(values)
    return row


def _one_line(text: str) -> str:
    return " ".join(clean(text).split())


def _axes(xs: Sequence[float], ys: Sequence[float], x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """A figure with empty axes from tick to tick, on which there is room for all values."""
    figure = new_figure(WIDTH / UNITS, HEIGHT / UNITS, dpi=UNITS)
    left, bottom = LEFT / WIDTH, BOTTOM / HEIGHT
    axes = figure.add_axes((left, bottom, 1 - left - RIGHT / WIDTH, 1 - bottom - TOP / HEIGHT))
    axes.autoscale(enable=False)
    axes.set_axisbelow(True)
    for axis, values, label in ((axes.xaxis, xs, x_label), (axes.yaxis, ys, y_label)):
        marks = ticks(min(values), max(values))
        axis.set_ticks(marks, [f"{mark:.4g}" for mark in marks], gid=css("tick"), fontsize=11, parse_math=False)
        (axes.set_xlim if axis is axes.xaxis else axes.set_ylim)(marks[0], marks[-1])
        axis.set_label_text(_one_line(label), gid=css("axis"), fontsize=11.5, va="baseline", parse_math=False)
    axes.grid(axis="y", gid=css("grid"), clip_on=False)
    for line in axes.xaxis.get_ticklines():
        line.set_gid(css("grid"))
    axes.tick_params(length=4)
    axes.tick_params(axis="y", length=0, pad=6)
    axes.xaxis.set_label_coords(0.5, -(BOTTOM - 8) / (HEIGHT - TOP - BOTTOM))
    axes.yaxis.set_label_coords(-(LEFT - 12) / (WIDTH - LEFT - RIGHT), 0.5)
    return figure, axes


def _plot(axes: Axes, xs: Sequence[float], ys: Sequence[float], gid: str, marker: str = "") -> None:
    axes.plot(xs, ys, gid=gid, clip_on=False, **(_marks(marker) if marker else {}))


def _marks(marker: str) -> dict[str, Any]:
    return {"marker": marker, "markersize": 13 if marker == "*" else 7, "linestyle": "none"}


def _write_labels(figure: Figure, axes: Axes, labels: Sequence[_Label]) -> list[str]:
    """Labels right of the plot at the heights of their points, moved apart where they would overlap, with a mark.

    Returns:
        Their whole texts, in the order in which they are drawn.
    """
    from matplotlib.lines import Line2D
    from matplotlib.transforms import IdentityTransform

    ends = [(*axes.transData.transform((label.x, label.y)), label) for label in labels]
    ends.sort(key=lambda end: -end[1])
    heights: list[float] = []
    for _, y, _ in ends:
        heights.append(min(y, heights[-1] - _LABEL_HEIGHT) if heights else y)
    raised = max(0.0, BOTTOM - heights[-1])
    left = WIDTH - RIGHT
    for (x, y, label), height in zip(ends, (height + raised for height in heights), strict=True):
        lead = Line2D([x + 5, left + 4], [y, height], gid=css(f"lead k{label.kind}"))
        mark = Line2D([left + 8], [height], gid=css(f"mark k{label.kind} key"), **_marks(label.marker))
        for artist in (lead, mark):
            artist.set_transform(IdentityTransform())
            figure.add_artist(artist)
        text = label.text if len(label.text) <= _LABEL_LENGTH else f"{label.text[: _LABEL_LENGTH - 1]}…"
        figure.text(
            (left + 15) / WIDTH, height / HEIGHT, text, gid=css("label"), fontsize=11.5, va="center_baseline",
            parse_math=False,
        )  # fmt: skip
    return [label.text for _, _, label in ends if label.text]
