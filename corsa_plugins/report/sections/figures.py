"""Figures: a chart with what is said about it, and its numbers as a table below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from markupsafe import Markup

from corsa_plugins.report.render import render

__all__ = ["Figure", "figures", "grouped"]

LONGEST_TABLE = 200
"""Rows of a figure's table; of more, an even choice is shown."""


@dataclass(frozen=True)
class Figure:
    """A chart with what is said about it.

    Attributes:
        heading: Above it.
        chart: Of :mod:`corsa_plugins.report.charts`.
        caption: Below it.
        columns: Headings of its numbers.
        rows: Its numbers.
    """

    heading: str
    chart: Markup
    caption: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()

    @property
    def shown_rows(self) -> list[list[str]]:
        """The rows of the table, as text."""
        stride = -(-len(self.rows) // LONGEST_TABLE) or 1
        return [[_cell(value) for value in row] for row in self.rows[::stride]]


def figures(drawn: Sequence[Figure]) -> Markup:
    """The figures side by side where there is room; nothing of none that have a chart."""
    return render("figures.html", figures=[figure for figure in drawn if figure.chart])


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


_Row = TypeVar("_Row")


def grouped(rows: Sequence[_Row], name: str) -> dict[Any, list[_Row]]:
    """Rows by the value of one of their attributes, in order of appearance."""
    groups: dict[Any, list[_Row]] = {}
    for row in rows:
        groups.setdefault(getattr(row, name), []).append(row)
    return groups
