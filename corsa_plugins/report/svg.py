"""Small charts as SVG text: lines with marks, points, histograms, and a mean with its interval in a table cell.

Series are told apart by the shape of their marks, by dashes and by labels at their ends; colour (from the page's style
sheet, which knows light and dark) only adds to it. All text is escaped. Numbers that are not finite are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Series", "histogram", "interval_mark", "line_chart", "ticks"]

WIDTH, HEIGHT = 420, 280
LEFT, RIGHT, TOP, BOTTOM = 48, 106, 14, 42
MARKS = 6
"""How many kinds of marks, dashes and colours there are before they repeat."""

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


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover [low, high]: the first is at most ``low``, the last at least ``high``."""
    if not high > low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    raw = (high - low) / count
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def line_chart(series: Sequence[Series], *, title: str, x_label: str, y_label: str, span: Sequence[float] = ()) -> str:
    """A chart of one or more series over common axes.

    Args:
        series: What to draw; points that are not finite are left out.
        title: Says what is to be seen, for those who do not see it.
        x_label, y_label: With their units.
        span: Values that the y axis takes in, whatever the points are.
    """
    finite = [(x, y) for line in series for x, y in line.points if math.isfinite(x) and math.isfinite(y)]
    ends = [value for line in series for value in (*line.low, *line.high) if math.isfinite(value)]
    if not finite:
        return ""
    ys = [y for _, y in finite] + ends + list(span)
    axes = _Axes([x for x, _ in finite], ys)
    parts = [axes.draw(x_label, y_label)]
    labels = []
    for index, line in enumerate(series):
        kind = index % MARKS
        places = [
            (axes.x(x), axes.y(y), number)
            for number, (x, y) in enumerate(line.points)
            if math.isfinite(x) and math.isfinite(y)
        ]
        for x, _, number in places:
            if number < len(line.low) and math.isfinite(line.low[number]) and math.isfinite(line.high[number]):
                top, bottom = axes.y(line.high[number]), axes.y(line.low[number])
                parts.append(f'<path class="err k{kind}" d="M{_n(x)} {_n(top)}V{_n(bottom)}"/>')
        if line.joined and len(places) > 1:
            path = "L".join(f"{_n(x)} {_n(y)}" for x, y, _ in places)
            parts.append(f'<path class="line k{kind}" d="M{path}"/>')
        # A mark on every point of a long series would be a bar of ink.
        stride = -(-len(places) // 12) or 1
        for place, (x, y, number) in enumerate(places):
            if place % stride == 0 or place == len(places) - 1:
                note = f"<title>{escape(line.notes[number])}</title>" if number < len(line.notes) else ""
                parts.append(f'<path class="mark k{kind}" d="{_mark(-1 if line.star else kind, x, y)}">{note}</path>')
        if places:
            labels.append((places[-1][1], places[-1][0], kind, line.label, line.star))
    parts.append(_labels(labels))
    return _svg("".join(parts), title)


def histogram(groups: Sequence[tuple[str, Sequence[float]]], *, title: str, x_label: str, bins: int = 20) -> str:
    """Shares of each group's values over common bins: bars for one group, stepped outlines for more."""
    kept = [(label, [value for value in values if math.isfinite(value)]) for label, values in groups]
    kept = [(label, values) for label, values in kept if values]
    if not kept:
        return ""
    low, high = min(min(values) for _, values in kept), max(max(values) for _, values in kept)
    if not high > low:
        room = max(0.5, abs(low) / 2)
        low, high = low - room, high + room
    width = (high - low) / bins
    counts = []
    for _, values in kept:
        row = [0.0] * bins
        for value in values:
            row[min(bins - 1, int((value - low) / width))] += 100 / len(values)
        counts.append(row)
    axes = _Axes([low, high], [0.0, *(share for row in counts for share in row)])
    parts = [axes.draw(x_label, "share of requests, %")]
    labels = []
    for index, ((label, values), row) in enumerate(zip(kept, counts, strict=True)):
        kind = index % MARKS
        steps, edges = [], [axes.x(low + width * place) for place in range(bins + 1)]
        for place, share in enumerate(row):
            steps.append(f"{_n(edges[place])} {_n(axes.y(share))}L{_n(edges[place + 1])} {_n(axes.y(share))}")
        outline = f"M{_n(edges[0])} {_n(axes.y(0))}L{'L'.join(steps)}L{_n(edges[-1])} {_n(axes.y(0))}"
        parts.append(f'<path class="{"bars" if len(kept) == 1 else "line"} k{kind}" d="{outline}"/>')
        tallest = max(range(bins), key=row.__getitem__)
        middle = sorted(values)[len(values) // 2]
        if len(kept) > 1:  # a mark on the outline leads to the label
            x, y = (edges[tallest] + edges[tallest + 1]) / 2, axes.y(row[tallest])
            parts.append(f'<path class="mark k{kind}" d="{_mark(kind, x, y)}"/>')
        labels.append((axes.y(row[tallest]), edges[tallest + 1], kind, label or f"median {middle:.3g}", False))
    parts.append(_labels(labels))
    return _svg("".join(parts), title)


def interval_mark(mean: float, low: float, high: float, *, title: str) -> str:
    """A share in [0, 1] as a dot with its interval on a small scale, to stand in a table."""
    if not all(map(math.isfinite, (mean, low, high))):
        return ""
    width = 76
    x = [4 + (width - 8) * min(1.0, max(0.0, value)) for value in (low, high, mean)]
    return (
        f'<svg class="tiny" viewBox="0 0 {width} 12" role="img" aria-label="{escape(title)}">'
        f'<path class="grid" d="M4 6H{width - 4}M4 3V9M{width - 4} 3V9"/>'
        f'<path class="err k0" d="M{_n(x[0])} 6H{_n(x[1])}"/>'
        f'<circle class="mark k0" cx="{_n(x[2])}" cy="6" r="3"/></svg>'
    )


class _Axes:
    def __init__(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        self.x_ticks, self.y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
        self.x = _scale(self.x_ticks, LEFT, WIDTH - RIGHT)
        self.y = _scale(self.y_ticks, HEIGHT - BOTTOM, TOP)

    def draw(self, x_label: str, y_label: str) -> str:
        parts = []
        for value in self.y_ticks:
            y = _n(self.y(value))
            parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
            parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y}" dy="4" text-anchor="end">{value:.4g}</text>')
        for value in self.x_ticks:
            x = _n(self.x(value))
            parts.append(f'<path class="grid" d="M{x} {HEIGHT - BOTTOM}v4"/>')
            anchor = f'y="{HEIGHT - BOTTOM + 16}" text-anchor="middle"'
            parts.append(f'<text class="tick" x="{x}" {anchor}>{value:.4g}</text>')
        middle = _n((LEFT + WIDTH - RIGHT) / 2)
        parts.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>')
        up = f'transform="translate(12 {_n((TOP + HEIGHT - BOTTOM) / 2)}) rotate(-90)" text-anchor="middle"'
        parts.append(f'<text class="axis" {up}>{escape(y_label)}</text>')
        return "".join(parts)


def _scale(marks: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    low, high = marks[0], marks[-1]
    return lambda value: start + (end - start) * (value - low) / (high - low)


def _labels(labels: Sequence[tuple[float, float, int, str, bool]]) -> str:
    """Labels right of the plot at the heights wanted, moved apart where they would overlap, each with its mark."""
    placed: list[tuple[float, float, float, int, str, bool]] = []
    bottom = -math.inf
    for y, x, kind, text, star in sorted(labels):
        at = max(y, bottom + _LABEL_HEIGHT)
        bottom = at
        placed.append((at, y, x, kind, text, star))
    over = max(0.0, bottom - (HEIGHT - BOTTOM)) if placed else 0.0
    parts = []
    left = WIDTH - RIGHT
    for at, y, x, kind, text, star in placed:
        at -= over
        short = text if len(text) <= _LABEL_LENGTH else text[: _LABEL_LENGTH - 1] + "…"
        lead = f"M{_n(x + 5)} {_n(y)}L{left + 4} {_n(at)}"
        mark = _mark(-1 if star else kind, left + 8, at)
        parts.append(f'<path class="lead k{kind}" d="{lead}"/><path class="mark k{kind}" d="{mark}"/>')
        words = f"{escape(short)}<title>{escape(text)}</title>"
        parts.append(f'<text class="label" x="{left + 15}" y="{_n(at)}" dy="4">{words}</text>')
    return "".join(parts)


def _mark(kind: int, x: float, y: float) -> str:
    """Outline of a mark: circle, square, triangle, diamond, upside-down triangle, bar; -1 is a star."""
    if kind == -1:
        angles = [math.pi * (index / 5 - 0.5) for index in range(10)]
        radii = [6.8 if index % 2 == 0 else 2.9 for index in range(10)]
        corners = [(r * math.cos(a), r * math.sin(a)) for a, r in zip(angles, radii, strict=True)]
    elif kind == 0:
        return f"M{_n(x - 3.5)} {_n(y)}a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0Z"
    else:
        corners = {
            1: [(-3.2, -3.2), (3.2, -3.2), (3.2, 3.2), (-3.2, 3.2)],
            2: [(0.0, -4.5), (4.2, 3.2), (-4.2, 3.2)],
            3: [(0.0, -4.8), (4.8, 0.0), (0.0, 4.8), (-4.8, 0.0)],
            4: [(0.0, 4.5), (4.2, -3.2), (-4.2, -3.2)],
            5: [(-4.5, -1.6), (4.5, -1.6), (4.5, 1.6), (-4.5, 1.6)],
        }[kind]
    return "M" + "L".join(f"{_n(x + dx)} {_n(y + dy)}" for dx, dy in corners) + "Z"


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _svg(content: str, title: str) -> str:
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}"'
    return f'<svg class="chart" {box} role="img" aria-label="{escape(title)}">{content}</svg>'
