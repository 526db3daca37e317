"""Results: comparisons of models, and every metric of the evaluations with its interval and its definition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from corsa_plugins.bench.evaluation import METRICS, Evaluation, Interval, Metric, compare, pair_metrics
from corsa_plugins.bench.evaluation.metrics import select_metrics
from corsa_plugins.bench.evaluation.same_questions import ReportError
from corsa_plugins.report.render import render
from corsa_plugins.report.report import Comparison, Report
from corsa_plugins.report.sections.cells import IntervalCell, interval_cell
from corsa_plugins.report.sections.section import Section

__all__ = ["RESULTS"]

ARROWS = {1: "\N{NO-BREAK SPACE}↑", -1: "\N{NO-BREAK SPACE}↓", 0: ""}


@dataclass(frozen=True)
class _Row:
    title: str
    cells: Sequence[IntervalCell | None]


@dataclass(frozen=True)
class _Table:
    heading: str
    columns: Sequence[str]
    rows: Sequence[_Row]
    caption: str = ""


@dataclass(frozen=True)
class _Changes:
    """What two evaluations differ by, or why that cannot be said."""

    by_metric: Mapping[str, Interval]
    of_two_moments: Mapping[str, Interval]
    remark: str = ""


def _render(report: Report) -> Markup:
    return render(
        "results.html",
        comparisons=[_comparison(comparison) for comparison in report.comparisons],
        **(_evaluations(report.evaluations, report.later) if report.evaluations else {"table": None}),
    )


def _comparison(comparison: Comparison) -> _Table:
    rows = [
        _Row(model, [interval_cell(column.means[index], column.percent) for column in comparison.columns])
        for index, model in enumerate(comparison.models)
    ]
    heads = [f"{column.title}{ARROWS[column.better]}" for column in comparison.columns]
    return _Table(comparison.heading, heads, rows, comparison.caption)


def _evaluations(evaluations: Sequence[Evaluation], later: bool) -> dict[str, object]:
    summaries = [evaluation.summary() for evaluation in evaluations]
    measured = [metric for metric in select_metrics(of=None) if any(metric.name in summary for summary in summaries)]
    changes = _changes(evaluations, later)
    pairs = [(METRICS[name], interval) for name, interval in changes.of_two_moments.items()]
    columns = [evaluation.label for evaluation in evaluations]
    rows = []
    for metric in measured:
        cells = [interval_cell(summary.get(metric.name), metric.percent) for summary in summaries]
        if changes.by_metric:
            cells.append(interval_cell(changes.by_metric.get(metric.name), metric.percent, is_change=True))
        rows.append(_row(metric, cells))
    empty = [None] if changes.by_metric else []
    rows += [_row(metric, [None, interval_cell(interval, metric.percent), *empty]) for metric, interval in pairs]
    if changes.by_metric:
        columns.append(f"change from {evaluations[0].label}")
    terms = [(metric.title_with_unit, metric.meaning) for metric in measured]
    terms += [(metric.title, metric.meaning) for metric, _ in pairs]
    return {"table": _Table("", columns, rows), "remark": changes.remark, "terms": terms}


def _row(metric: Metric, cells: Sequence[IntervalCell | None]) -> _Row:
    return _Row(f"{metric.title_with_unit}{ARROWS[metric.better]}", cells)


def _changes(evaluations: Sequence[Evaluation], later: bool) -> _Changes:
    if len(evaluations) != 2:
        return _Changes({}, {})
    try:
        by_metric = {name: change.difference for name, change in compare(*evaluations).items()}
        return _Changes(by_metric, pair_metrics(*evaluations, later=later))
    except ReportError as error:
        return _Changes({}, {}, f"No changes are shown: {error}.")


RESULTS = Section(
    name="results",
    title="Results",
    needs=lambda report: report if report.comparisons or report.evaluations else None,
    render=_render,
)
