"""What a metric is: one value, which everything that shows metrics reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, StrEnum

__all__ = ["Metric", "Moments", "Of", "Shown"]


class Of(StrEnum):
    """What there is one number for."""

    REQUEST = "request"
    FACT = "untouched fact"


class Moments(StrEnum):
    """At which moments the model is asked, for one number."""

    ONE = "one moment"
    EDIT = "before an edit and after it"
    LATER = "right after an update and after later ones"


class Shown(IntEnum):
    """How much room there must be for it: in tables of this kind and of those that follow."""

    EVERYWHERE = 0
    """Where an update is told in two numbers: after many updates, or for each of many adapters."""
    COMPARED = 1
    """Where models are compared, with a column for each metric: of a protocol, a sweep, a choice of adapters."""
    LISTED = 2
    """Where all that was measured is listed."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number for each request, or for each untouched fact, and what it means.

    Its value is a function of what the model said:

    * at one moment, ``value(record)``, or ``value(answer)`` of a fact
      (:class:`~corsa_plugins.bench.evaluation.records.Record`,
      :class:`~corsa_plugins.bench.evaluation.records.ProbeAnswer`);
    * at two, ``value(then, now, whole_output)``, where ``whole_output`` says that the whole output is the answer, as
      behind a chat template, rather than its first sentence.

    It is ``None`` where there is nothing to measure it on.

    Attributes:
        name: In files.
        title: In tables of all metrics.
        definition: What is counted.
        source: Of the definition.
        value: As above.
        of: What there is a number for.
        moments: At which moments the model is asked.
        better: ``1`` if higher is better, ``-1`` if lower is, ``0`` for a number that only describes.
        unit: ``"%"`` for a share in [0, 1], which is shown in percent.
        needs: Without which of its fields a request has nothing to measure it on.
        shown: In which tables.
        heading: Of a narrow column; by default the title in small letters.
    """

    name: str
    title: str
    definition: str
    source: str
    value: Callable[..., float | bool | None]
    of: Of = Of.REQUEST
    moments: Moments = Moments.ONE
    better: int = 1
    unit: str = "%"
    needs: frozenset[str] = frozenset()
    shown: Shown = Shown.LISTED
    heading: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "heading", self.heading or self.title[:1].lower() + self.title[1:])

    @property
    def percent(self) -> bool:
        """Whether it is a share, shown in percent."""
        return self.unit == "%"

    @property
    def title_with_unit(self) -> str:
        """For a row of its own."""
        return f"{self.title}, {self.unit}"

    @property
    def meaning(self) -> str:
        """What is counted, and where the definition comes from."""
        return f"{self.definition} ({self.source})"
