"""Edits in the wild: free answers, counted leniently and strictly, and the answers on which the two part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import groupby

from markupsafe import Markup

from corsa_plugins.bench.evaluation import Interval
from corsa_plugins.bench.protocols.wild import WILD as FILE
from corsa_plugins.bench.wild import FORMS, MEASURES
from corsa_plugins.bench.wild.table import WildFigures, share_of, wild_cells
from corsa_plugins.report.kinds import File, Kind, has
from corsa_plugins.report.render import render, shortened
from corsa_plugins.report.sections.cells import IntervalCell, interval_cell
from corsa_plugins.report.sections.section import Section

__all__ = ["WILD"]

MOST_APART = 100
"""Answers that are listed for each method."""

_LONGEST = 400


@dataclass(frozen=True)
class _Row:
    asked: str
    right: str
    cells: list[IntervalCell | None]


def _render(runs: list[WildFigures]) -> Markup:
    cells = wild_cells(runs).items()
    tables = [
        (moment, [_Row(asked, right, [_cell(asked, mean) for mean in means]) for (_, asked, right), means in of])
        for moment, of in groupby(cells, key=lambda cell: cell[0][0])
    ]
    apart = [(run.method, len(run.apart), [_shown(row) for row in run.apart[:MOST_APART]]) for run in runs if run.apart]
    terms = [(form.title, form.meaning) for form in FORMS] + list(MEASURES.items())
    return render("wild.html", tables_of=tables, methods=[run.method for run in runs], apart=apart, terms=terms)


def _cell(asked: str, mean: Interval | None) -> IntervalCell | None:
    cell = interval_cell(mean, True)
    return None if cell is None or mean is None else replace(cell, of=share_of(asked, mean))


def _shown(row: Mapping[str, str]) -> dict[str, str]:
    return {name: shortened(str(text), _LONGEST) for name, text in row.items()}


def _read(file: File) -> tuple[list[WildFigures], str]:
    figures = WildFigures.from_dict(file.data["wild"])
    if file.is_labelled:
        figures = replace(figures, method=file.label)
    return [figures], f"{figures.method}, {len(figures.moments)} moments"


WILD = Section(
    name="wild",
    title="In the wild",
    render=_render,
    kinds=(
        Kind(
            name="free answers in the wild",
            fits=has("wild"),
            read=_read,
            names=(FILE,),
            said=f"free answers in the wild ({FILE} of corsa protocol wild)",
        ),
    ),
)
