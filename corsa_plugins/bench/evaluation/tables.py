"""Evaluations as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from corsa_plugins.bench.evaluation.changes import compare
from corsa_plugins.bench.evaluation.evaluation import Evaluation
from corsa_plugins.bench.evaluation.intervals import Interval
from corsa_plugins.bench.evaluation.metrics import METRICS, Metric, select_metrics
from corsa_plugins.bench.evaluation.moments import pair_metrics

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["change_table", "interval_cell", "metric_cell", "summary_table"]


def summary_table(
    evaluations: Sequence[Evaluation], metrics: Sequence[str] | None = None, title: str | None = None
) -> Table:
    """A table for the terminal: a row per metric, a column per evaluation, each mean with its 95 % interval.

    Args:
        evaluations: One or more; each is headed by its label.
        metrics: Which rows; by default all that any of the evaluations has.
        title: Above the table.
    """
    from rich.table import Table
    from rich.text import Text

    summaries = [evaluation.summary() for evaluation in evaluations]
    table = Table(title=title if title is None else Text(title))
    table.add_column("")
    for evaluation in evaluations:
        table.add_column(Text(evaluation.label), justify="right")
    rows = [METRICS[name] for name in metrics] if metrics else select_metrics(of=None)
    for metric in rows:
        if metrics or any(metric.name in summary for summary in summaries):
            cells = [metric_cell(summary.get(metric.name), metric) for summary in summaries]
            table.add_row(metric.title_with_unit, *cells)
    return table


def change_table(before: Evaluation, after: Evaluation, title: str | None = None, *, later: bool = False) -> Table:
    """A table of :func:`compare`: before, after, and the change with its 95 % interval; then metrics of two moments.

    Args:
        before: Also the earlier of the two moments.
        after: The later one.
        title: Above the table.
        later: Which two moments these are, as for :func:`~corsa_plugins.bench.evaluation.moments.pair_metrics`.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title if title is None else Text(title))
    table.add_column("")
    for heading in (before.label, after.label, "change"):
        table.add_column(Text(heading), justify="right")
    for name, change in compare(before, after).items():
        metric = METRICS[name]
        moments = (metric_cell(moment, metric) for moment in (change.before, change.after))
        table.add_row(metric.title_with_unit, *moments, metric_cell(change.difference, metric, sign="+"))
    for name, interval in pair_metrics(before, after, later=later).items():
        table.add_row(METRICS[name].title_with_unit, "", metric_cell(interval, METRICS[name]), "")
    return table


def interval_cell(interval: Interval, *, percent: bool, sign: str = "") -> str:
    """A mean with its interval, as text."""
    scale, digits = (100, 1) if percent else (1, 2)
    mean, low, high = (f"{scale * value:{sign}.{digits}f}" for value in interval[:3])
    return f"{mean}  [{low}, {high}]"


def metric_cell(interval: Interval | None, metric: Metric, sign: str = "") -> str:
    """A metric's mean with its interval, as text; empty where there is none."""
    return "" if interval is None else interval_cell(interval, percent=metric.percent, sign=sign)
