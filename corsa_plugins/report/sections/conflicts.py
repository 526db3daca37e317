"""Conflict figures of each request (AlphaEdit+ paper, Figure 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from corsa_plugins.report.charts import histogram
from corsa_plugins.report.kinds import File, Kind, first_has, has, number, updates_of
from corsa_plugins.report.sections.figures import Figure, figures, grouped
from corsa_plugins.report.sections.section import Section

__all__ = ["CONFLICTS", "Conflict", "conflict_figures"]


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
            for group, rows in grouped(conflicts, "group").items()
        ]
        chart = histogram(groups, title=f"{heading}: distribution over requests", x_label=unit)
        numbers = [(group, len(v), sorted(v)[len(v) // 2], max(v)) for group, v in groups if v]
        caption = "Distribution over the requests; further right, the edit is harder."
        drawn.append(Figure(heading, chart, caption, ("group", "requests", "median", "largest"), numbers))
    return drawn


def _read(file: File) -> tuple[list[Conflict], str]:
    rows = file.data["requests"] if isinstance(file.data, Mapping) and "requests" in file.data else file.data
    rows = rows if isinstance(rows, list) else [rows]
    conflicts = [
        Conflict(
            number(row["preserved_conflict"]),
            number(row["prior_conflict"]),
            number(row.get("inconsistency")),
            group=file.label,
        )
        for row in rows
    ]
    return conflicts, f"{len(rows)} requests"


_SAID = "a report of corsa edit (report.json) or of corsa diagnose --output (diagnosis.jsonl)"

CONFLICTS = Section(
    name="conflicts",
    title="Conflicts",
    render=lambda conflicts: figures(conflict_figures(conflicts)),
    kinds=(
        Kind(
            name="a report of corsa edit",
            fits=has("batch", "requests", "layers"),
            read=_read,
            names=("report.json",),
            find=updates_of("report.json"),
            said=_SAID,
        ),
        Kind(
            name="a diagnosis of corsa diagnose",
            fits=first_has("preserved_conflict", "prior_conflict"),
            read=_read,
            names=("diagnosis.jsonl",),
            said=_SAID,
        ),
    ),
)
