"""Methods in the wild, side by side: what tables show, and a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from corsa_plugins.bench.evaluation import Interval
from corsa_plugins.bench.wild.questions import FORMS

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["AFTER", "ALONE", "BEFORE", "WildFigures", "plain_summary", "share_of", "wild_cells", "wild_table"]

BEFORE, AFTER, ALONE = "before", "after all edits", "each edit alone"
"""Moments, besides those after what an edited model went through."""

_SHOWN = {
    "words": "as words",
    "exact": "exactly",
    "text": "as text",
    "judged": "by the judge",
    "stopped": "stopped by itself",
}
_GIVEN = "its tokens given"

Summary = Mapping[str, Mapping[str, Interval]]
"""By form and measure."""


@dataclass(frozen=True)
class WildFigures:
    """What tables show of a method.

    Attributes:
        method: Its name.
        moments: Summaries by moment, in the order of tables.
        lenient: With the target's own tokens given, by moment.
        apart: Answers on which measures part, as plain data: ``form``, ``prompt``, ``right``, ``output``, and the
            measures by which they are right (``lenient``) and wrong (``strict``).
    """

    method: str
    moments: Mapping[str, Summary]
    lenient: Mapping[str, Interval]
    apart: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> WildFigures:
        """What :meth:`as_dict` gave.

        Raises:
            KeyError, TypeError, AttributeError: It is something else.
        """
        moments = {
            moment: {form: {name: Interval(**row) for name, row in rows.items()} for form, rows in summary.items()}
            for moment, summary in data["moments"].items()
        }
        lenient = {moment: Interval(**row) for moment, row in data["lenient"].items()}
        return cls(str(data["method"]), moments, lenient, tuple(data["apart"]))

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "method": self.method,
            "lenient": {moment: interval._asdict() for moment, interval in self.lenient.items()},
            "moments": {moment: plain_summary(summary) for moment, summary in self.moments.items()},
            "apart": list(self.apart),
        }

    def rows(self) -> Iterator[tuple[tuple[str, str, str], Interval]]:
        """Moment, what was asked and how it was counted, each with its mean.

        The prompt has all measures, the lenient one first where its tokens were given, other forms that of words and a
        judge's.
        """
        for moment, summary in self.moments.items():
            if moment in self.lenient:
                yield (moment, FORMS[0].title, _GIVEN), self.lenient[moment]
            for form in FORMS:
                for measure, called in _SHOWN.items():
                    mean = summary.get(form.name, {}).get(measure)
                    if mean is not None and (measure in ("words", "judged") or form is FORMS[0]):
                        yield (moment, form.title, called), mean


def plain_summary(summary: Summary) -> dict[str, Any]:
    """A summary as plain data for JSON."""
    return {form: {name: value._asdict() for name, value in row.items()} for form, row in summary.items()}


def wild_cells(runs: list[WildFigures]) -> dict[tuple[str, str, str], list[Interval | None]]:
    """The means of all methods, in their order, by row."""
    own = [dict(run.rows()) for run in runs]
    places = dict.fromkeys(place for moment in _moments(runs) for rows in own for place in rows if place[0] == moment)
    return {place: [rows.get(place) for rows in own] for place in places}


def share_of(asked: str, mean: Interval) -> str:
    """Of how many requests a figure is, where that hangs on the method: " of 12"; elsewhere nothing.

    Args:
        asked: The form's title.
        mean: The figure.
    """
    return f" of {mean.n}" if any(form.title == asked and form.if_said for form in FORMS) else ""


def wild_table(runs: list[WildFigures]) -> Table:
    """A row for each thing asked at each moment, a column for each method; percent."""
    from rich.table import Table

    table = Table("moment", "asked", "right", title="In the wild: free answers, percent over requests", title_style="")
    for run in runs:
        table.add_column(run.method, justify="right")
    last = ""
    for (moment, asked, right), means in wild_cells(runs).items():
        cells = ("" if mean is None else f"{100 * mean.mean:.1f}{share_of(asked, mean)}" for mean in means)
        table.add_row(moment if moment != last else "", asked, right, *cells)
        last = moment
    return table


def _moments(runs: list[WildFigures]) -> list[str]:
    return list(dict.fromkeys(moment for run in runs for moment in run.moments))
