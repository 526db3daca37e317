"""The figures of a report, each from plain rows of numbers, each with its numbers as a table below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, TypeVar

from corsa_plugins.bench.protocols.shares import ForgettingPoint
from corsa_plugins.methods.history import is_look
from corsa_plugins.report.listing import text
from corsa_plugins.report.svg import Series, histogram, line_chart

__all__ = [
    "Conflict",
    "Figure",
    "HistoryPoint",
    "SweepRow",
    "conflict_figures",
    "figures",
    "forgetting_figure",
    "history_figures",
    "history_points",
    "sweep_figures",
]

LONGEST_TABLE = 200
"""Rows of a figure's table; of more, an even choice is shown."""


@dataclass(frozen=True)
class HistoryPoint:
    """Means over the requests at one step of training.

    Attributes:
        step: Of the optimiser.
        log_prob_new: Mean log p(target_new | prompt), nats.
        log_prob_old: The same of target_old.
        margin: Mean margin, nats; by default the difference of the two.
        run: Which run, for instance the method; each is a panel of its own.
    """

    step: float
    log_prob_new: float
    log_prob_old: float | None = None
    margin: float | None = None
    run: str = ""


@dataclass(frozen=True)
class SweepRow:
    """One point of a sweep over the scale and the density of a weight delta.

    Attributes:
        weight: What the delta was scaled by.
        density: Share of it that was kept.
        edits_kept: Efficacy or generality, in [0, 1].
        retained: Share of what the base knew that is still right, in [0, 1].
        best: Whether this is the point chosen.
        run: Which sweep; each is a panel of its own.
    """

    weight: float
    density: float
    edits_kept: float
    retained: float
    best: bool = False
    run: str = ""


@dataclass(frozen=True)
class Conflict:
    """The three conflict figures of one request (AlphaEdit+ paper, Eq. 3 and section 3); ``None`` if not measured.

    Attributes:
        preserved: Conflict with preserved knowledge K0, a cosine.
        prior: Conflict with prior edits Kp, a cosine.
        inconsistency: Norm of the residual before the edit.
        group: Which data set or batch the request belongs to.
    """

    preserved: float | None = None
    prior: float | None = None
    inconsistency: float | None = None
    group: str = ""


@dataclass(frozen=True)
class Figure:
    """A chart with what is said about it.

    Attributes:
        heading: Above it.
        chart: SVG.
        caption: Below it.
        columns: Headings of its numbers.
        rows: Its numbers.
    """

    heading: str
    chart: str
    caption: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()


def figures(drawn: Sequence[Figure]) -> str:
    """The figures side by side where there is room; nothing of no figures."""
    kept = [_figure(figure) for figure in drawn if figure.chart]
    return f'<div class="figures">{"".join(kept)}</div>' if kept else ""


def _figure(figure: Figure) -> str:
    heading = f"<h3>{text(figure.heading)}</h3>" if figure.heading else ""
    table = ""
    if figure.rows:
        stride = -(-len(figure.rows) // LONGEST_TABLE)
        head = "".join(f'<th scope="col">{text(name)}</th>' for name in figure.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{_number(value)}</td>" for value in row) + "</tr>" for row in figure.rows[::stride]
        )
        table = (
            '<details><summary class="soft">Numbers</summary><div class="box"><table>'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></details>"
        )
    return f"<figure>{heading}{figure.chart}<figcaption>{text(figure.caption)}</figcaption>{table}</figure>"


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else text(value)


_R = TypeVar("_R")


def _groups(rows: Sequence[_R], name: str) -> dict[Any, list[_R]]:
    groups: dict[Any, list[_R]] = {}
    for row in rows:
        groups.setdefault(getattr(row, name), []).append(row)
    return groups


def history_figures(history: Sequence[HistoryPoint]) -> list[Figure]:
    """A panel for each run: log p of the new and of the old answer, and the margin, over the steps; on one scale."""
    drawn = []
    values = [v for p in history for v in (p.log_prob_new, p.log_prob_old, _margin(p)) if v is not None and isfinite(v)]
    span = (min(values), max(values)) if values else ()
    for run, points in _groups(history, "run").items():
        points = sorted(points, key=lambda point: point.step)
        margins = [_margin(point) for point in points]
        series = [Series("log p(new)", [(point.step, point.log_prob_new) for point in points])]
        old = [(point.step, point.log_prob_old) for point in points if point.log_prob_old is not None]
        gaps = [(point.step, gap) for point, gap in zip(points, margins, strict=True) if gap is not None]
        series += [Series("log p(old)", old)] if old else []
        series += [Series("margin", gaps)] if gaps else []
        title = f"Log-probabilities and margin over training{f', {run}' if run else ''}"
        rows = [(p.step, p.log_prob_new, p.log_prob_old, gap) for p, gap in zip(points, margins, strict=True)]
        drawn.append(
            Figure(
                run,
                line_chart(series, title=title, x_label="optimiser step", y_label="nats, mean of requests", span=span),
                "Log-probabilities of the new and the old answer, and their difference, the margin.",
                ("step", "log p(new)", "log p(old)", "margin"),
                rows,
            )
        )
    return drawn


def _margin(point: HistoryPoint) -> float | None:
    if point.margin is not None or point.log_prob_old is None:
        return point.margin
    return point.log_prob_new - point.log_prob_old


def history_points(log_history: Sequence[Mapping[str, Any]], run: str = "") -> list[HistoryPoint]:
    """The points of a trainer's ``state.log_history``, or of a ``history.json``.

    Where it has looks (:mod:`corsa_plugins.methods.history`), they are taken: the prompts that were edited are the run
    ``run``, and others get a run of their own, named after ``run`` and what is different. Else entries with ``step``
    and ``logps/new`` are, with ``logps/old`` and ``margin`` where they have them: means over the batches since the
    last entry, not over all requests. Other entries are left out.
    """
    looks = [entry for entry in log_history if is_look(entry)]
    points = []
    for part, what in _PARTS.items() if looks else (("", ""),):
        for entry in looks or log_history:
            if "step" in entry and f"{part}logps/new" in entry:
                own = ", ".join(name for name in (run, entry.get("stage", ""), what) if name)
                old, margin = entry.get(f"{part}logps/old"), entry.get(f"{part}margin")
                points.append(HistoryPoint(entry["step"], entry[f"{part}logps/new"], old, margin, own))
    return points


_PARTS = {"history/edit/": "", "history/validation/": "other wordings"}


def forgetting_figure(points: Sequence[ForgettingPoint]) -> list[Figure]:
    """Forgetting over the share of data used for the later update, a line for each method."""
    series = []
    for method, own in _groups(points, "method").items():
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
    rows = [(point.method, 100 * point.share, 100 * point.forgetting) for point in points]
    return [
        Figure(
            "",
            chart,
            "Generality of the earlier update that was lost, in percentage points; lower is better.",
            ("method", "share, %", "forgetting, points"),
            rows,
        )
    ]


def sweep_figures(sweep: Sequence[SweepRow]) -> list[Figure]:
    """Edits kept against knowledge retained, a line for each density, along growing weight; a panel for each sweep."""
    return [_sweep_figure(run, rows) for run, rows in _groups(sweep, "run").items()]


def _sweep_figure(run: str, sweep: Sequence[SweepRow]) -> Figure:
    base = [row for row in sweep if not (row.weight and row.density)]
    merges = [row for row in sweep if row.weight and row.density]
    series = []
    for density, rows in sorted(_groups(merges, "density").items()):
        rows = sorted(rows, key=lambda row: row.weight)
        series.append(
            Series(
                f"density {density:g}",
                [(100 * row.retained, 100 * row.edits_kept) for row in rows],
                notes=[f"weight {row.weight:g}, density {row.density:g}" for row in rows],
            )
        )
    if base:
        series.append(Series("base", [(100 * row.retained, 100 * row.edits_kept) for row in base], joined=False))
    best = [row for row in sweep if row.best]
    if best:
        places = [(100 * row.retained, 100 * row.edits_kept) for row in best]
        series.append(Series(f"best: {best[-1].weight:g}, {best[-1].density:g}", places, joined=False, star=True))
    chart = line_chart(
        series,
        title=f"Edits kept against knowledge retained{f', {run}' if run else ''}",
        x_label="retained, %",
        y_label="edits kept, %",
        span=(0.0, 100.0),
    )
    caption = "Each line is a density; the weight grows along it, and its label is at the largest weight. "
    if best:
        caption += f"The star is the best merge: weight {best[-1].weight:g}, density {best[-1].density:g}. "
    rows_shown = [
        (row.weight, row.density, 100 * row.edits_kept, 100 * row.retained, "best" if row.best else "") for row in sweep
    ]
    return Figure(
        run,
        chart,
        caption + "The upper right corner is where all edits and all knowledge are.",
        ("weight", "density", "edits kept, %", "retained, %", ""),
        rows_shown,
    )


def conflict_figures(conflicts: Sequence[Conflict]) -> list[Figure]:
    """A histogram of each of the three figures over the requests."""
    drawn = []
    for name, heading, unit in (
        ("preserved", "Conflict with preserved knowledge", "|cosine| with K0"),
        ("prior", "Conflict with prior edits", "|cosine| with Kp"),
        ("inconsistency", "Inconsistency", "norm of the residual"),
    ):
        groups = [
            (str(group), [value for row in rows if (value := getattr(row, name)) is not None])
            for group, rows in _groups(conflicts, "group").items()
        ]
        chart = histogram(groups, title=f"{heading}: distribution over requests", x_label=unit)
        numbers = [(group, len(v), sorted(v)[len(v) // 2], max(v)) for group, v in groups if v]
        caption = "Distribution over the requests; further right, the edit is harder."
        drawn.append(Figure(heading, chart, caption, ("group", "requests", "median", "largest"), numbers))
    return drawn
