"""Whether updates took: what their methods say of their own requests (:mod:`corsa_plugins.methods.effect`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from corsa_plugins.methods.effect import EFFECT
from corsa_plugins.report.kinds import File, Kind, updates_of
from corsa_plugins.report.render import render
from corsa_plugins.report.sections.section import Section

__all__ = ["EFFECTS", "EffectRow"]


@dataclass(frozen=True)
class EffectRow:
    """What became of one update.

    Attributes:
        update: Its name.
        taken: How many of its requests were taken.
        of: How many there were.
        text: In words, with the cure where there were few.
    """

    update: str
    taken: int
    of: int
    text: str

    @classmethod
    def of_report(cls, update: str, report: Mapping[str, Any]) -> EffectRow | None:
        """From the report of an update; ``None`` where it does not say."""
        effect = report.get(EFFECT)
        if not isinstance(effect, Mapping):
            return None
        return cls(update, int(effect["taken"]), int(effect["of"]), str(effect["text"]))


def _read(file: File) -> tuple[list[EffectRow], str]:
    row = EffectRow.of_report(file.label, file.data)
    return ([row], row.text) if row else ([], "nothing")


EFFECTS = Section(
    name="effects",
    title="What each update did",
    render=lambda rows: render("effects.html", rows=rows),
    kinds=(
        Kind(
            name="a report of an update",
            fits=lambda data: isinstance(data, Mapping) and EFFECT in data,
            read=_read,
            names=("report.json",),
            find=updates_of("report.json"),
            said="the report of an update (report.json of corsa edit or corsa train)",
        ),
    ),
)
