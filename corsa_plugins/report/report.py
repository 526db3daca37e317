"""What a page is made of, before it is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from corsa_plugins.bench.evaluation import Evaluation, Interval, Metric
from corsa_plugins.manifest import versions

__all__ = ["Column", "Comparison", "Report", "versions"]


@dataclass(frozen=True)
class Column:
    """One column of a :class:`Comparison`.

    Attributes:
        title: With its unit.
        better: Whether more (1) or less (-1) of it is better.
        means: For each model, ``None`` where there is none.
        percent: Whether the means are shares, shown in percent.
    """

    title: str
    better: int
    means: Sequence[Interval | None]
    percent: bool = True

    @classmethod
    def of(cls, metric: Metric, models: Sequence[Mapping[str, Interval]]) -> Column:
        """A metric of each model, by name in what the model was measured by."""
        means = [model.get(metric.name) for model in models]
        return cls(metric.title_with_unit, metric.better, means, metric.percent)


@dataclass(frozen=True)
class Comparison:
    """A table of means, of one moment for instance: a row for each model, a column for each metric.

    Attributes:
        heading: Above it.
        models: Their names.
        columns: One for each metric.
        caption: Below it.
    """

    heading: str
    models: Sequence[str]
    columns: Sequence[Column]
    caption: str = ""


@dataclass(frozen=True)
class Report:
    """What a page shows.

    Attributes:
        title: Of the page.
        evaluations: In the order of their columns. The last is the one reported on; the list of requests shows it
            beside those that were asked the same. With exactly two, asked the same, the change is shown too.
        asked: What was run: command, model, settings, versions; shown as it is, in this order.
        comparisons: Tables to open with.
        answers: What the list of requests shows, by default that of ``evaluations``: groups of evaluations that were
            asked the same.
        parts: What the other sections show, by their names (:data:`corsa_plugins.report.sections.SECTIONS`).
        notes: Paragraphs for the reader, below the title.
        later: With two evaluations: whether the first is from right after the update and the second from after later
            ones (forgetting), rather than from before and after it (locality).
    """

    title: str
    evaluations: Sequence[Evaluation] = ()
    asked: Mapping[str, Any] = field(default_factory=dict)
    comparisons: Sequence[Comparison] = ()
    answers: Sequence[Sequence[Evaluation]] | None = None
    parts: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    later: bool = False
