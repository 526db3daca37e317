"""Metrics of several moments side by side, as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from corsa_plugins.bench.evaluation import Interval, Metric
from corsa_plugins.bench.evaluation.metrics import Moments, Of, Shown, select_metrics
from corsa_plugins.bench.evaluation.tables import metric_cell

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Row", "add_rows"]


@dataclass(frozen=True)
class Row:
    """A row: metrics by name, of each moment.

    Attributes:
        name: In the first column.
        right_after: Of requests, right after their update.
        untouched: Of the untouched facts, at the same moment.
        at_the_end: Of requests, after the last update.
        later: What was lost in between.
        untouched_at_the_end: Of the untouched facts, after the last update.
    """

    name: str
    right_after: Mapping[str, Interval] = field(default_factory=dict)
    untouched: Mapping[str, Interval] = field(default_factory=dict)
    at_the_end: Mapping[str, Interval] = field(default_factory=dict)
    later: Mapping[str, Interval] = field(default_factory=dict)
    untouched_at_the_end: Mapping[str, Interval] = field(default_factory=dict)


def add_rows(table: Table, rows: Sequence[Row]) -> Table:
    """The table with these rows, and a column for each metric and moment that any of them has a value for."""
    columns = {
        heading: [metric_cell(getattr(row, moment).get(metric.name), metric) for row in rows]
        for heading, metric, moment in _columns()
    }
    columns = {heading: cells for heading, cells in columns.items() if any(cells)}
    for heading in columns:
        table.add_column(heading, justify="right")
    for index, row in enumerate(rows):
        table.add_row(row.name, *(cells[index] for cells in columns.values()))
    return table


def _columns() -> list[tuple[str, Metric, str]]:
    """Every column there may be: its heading, the metric, and the part of a row."""
    compared, facts = select_metrics(shown=Shown.COMPARED), select_metrics(Of.FACT, shown=Shown.COMPARED)
    later = select_metrics(moments=Moments.LATER, shown=Shown.COMPARED)
    everywhere = select_metrics(shown=Shown.EVERYWHERE)
    return [
        *((metric.heading, metric, "right_after") for metric in compared),
        *((metric.heading, metric, "untouched") for metric in facts),
        *((f"{metric.heading} at the end", metric, "at_the_end") for metric in everywhere),
        *((metric.heading, metric, "later") for metric in later),
        *((f"{metric.heading} at the end", metric, "untouched_at_the_end") for metric in facts),
    ]
