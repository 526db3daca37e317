"""Several adapters with routed and with true choice, as tables and as plain data (CoRSA paper, B.2, Table 8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from corsa_plugins.bench.evaluation import METRICS, Evaluation, Interval, compare
from corsa_plugins.bench.evaluation.metrics import Shown, select_metrics
from corsa_plugins.bench.evaluation.tables import interval_cell, metric_cell
from corsa_plugins.bench.routing.accuracy import routing_share_of_gap
from corsa_plugins.bench.routing.evaluation import RoutedEvaluation
from corsa_plugins.errors import SettingError

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["RoutingReport"]


@dataclass(frozen=True)
class RoutingReport:
    """What several adapters know, and what of it is lost on the way to them.

    Attributes:
        names: Of the adapters.
        sizes: The number of requests of each.
        routed: With the router's choice.
        true: With the true choice, the adapter of the request's part.
        single: One adapter for all requests, in the order of the parts: the upper bound.

    Raises:
        SettingError: The evaluations are not of these parts.
    """

    names: Sequence[str]
    sizes: Sequence[int]
    routed: RoutedEvaluation
    true: Evaluation
    single: Evaluation | None = None

    def __post_init__(self) -> None:
        for evaluation in self.evaluations:
            if len(evaluation.records) != sum(self.sizes) or len(self.names) != len(self.sizes):
                raise SettingError(
                    f"{evaluation.label}: {len(evaluation.records)} requests, and parts of {list(self.sizes)} named "
                    f"{list(self.names)}: evaluate the requests of all parts, one part after the other"
                )

    @property
    def evaluations(self) -> list[Evaluation]:
        """The single adapter (if there is one), the true choice, the routed one."""
        return [*([self.single] if self.single else []), self.true, self.routed.evaluation]

    @property
    def settings(self) -> dict[str, Any]:
        """With which they were asked, ``max_new_tokens`` for instance; the same for all of them."""
        return dict(self.true.settings or {})

    @property
    def chance(self) -> float:
        """The accuracy of a router that draws."""
        return 1 / len(self.names)

    @property
    def largest(self) -> float:
        """The accuracy of a router that sends everything to the adapter of the most requests."""
        return max(self.sizes) / sum(self.sizes)

    @cached_property
    def metrics(self) -> list[str]:
        """Those that models are compared by, as far as they were measured; an evaluation's files have all of them."""
        measured = self.true.summary()
        return [metric.name for metric in select_metrics(shown=Shown.COMPARED) if metric.name in measured]

    @cached_property
    def lost(self) -> dict[str, Interval]:
        """By metric, the routed choice minus the true one on the same requests, with paired intervals."""
        return {name: change.difference for name, change in compare(self.true, self.routed.evaluation).items()}

    def share_of_gap(self, metric: str) -> float | None:
        """:func:`~corsa_plugins.bench.routing.accuracy.routing_share_of_gap`; ``None`` without a single adapter."""
        if self.single is None:
            return None
        # Of what is better when it is less, the gap has the other sign.
        sign = METRICS[metric].better or 1
        single, true, routed = (sign * evaluation.summary()[metric].mean for evaluation in self.evaluations)
        return routing_share_of_gap(single, true, routed)

    def part(self, index: int) -> list[Evaluation]:
        """The evaluations of one part's requests."""
        start = sum(self.sizes[:index])
        end = start + self.sizes[index]
        return [
            Evaluation(evaluation.label, evaluation.records[start:end], (), evaluation.settings)
            for evaluation in self.evaluations
        ]

    def part_accuracy(self, index: int) -> Interval:
        """Share of one part's edit prompts and paraphrases sent to its adapter, mean over requests."""
        return self.routed.accuracy_of(("prompt", "paraphrases"), index)

    def table(self) -> Table:
        """For the terminal: routing accuracy, then each metric of all requests."""
        from rich.table import Table

        table = Table(title=f"{sum(self.sizes)} requests in {len(self.names)} parts: means with 95 % intervals")
        for heading in ("", *(evaluation.label for evaluation in self.evaluations), "lost by routing"):
            table.add_column(heading, justify="right" if heading else "left")
        if self.single:
            table.add_column("of the gap to one adapter", justify="right")
        blank = [""] * len(self.evaluations[:-1])
        table.add_row("Routing accuracy, %", *blank, interval_cell(self.routed.accuracy, percent=True))
        table.add_row("  by chance, %", *blank, f"{100 * self.chance:.1f}")
        for name in self.metrics:
            metric = METRICS[name]
            cells = [metric_cell(evaluation.summary()[name], metric) for evaluation in self.evaluations]
            share = self.share_of_gap(name)
            gap = [] if self.single is None else ["-" if share is None else f"{100 * share:.0f} %"]
            table.add_row(metric.title_with_unit, *cells, metric_cell(self.lost[name], metric, sign="+"), *gap)
        return table

    def parts_table(self) -> Table:
        """For the terminal: routing accuracy and generality (efficacy, without paraphrases) of each part."""
        from rich.table import Table

        metric = "generality" if "generality" in self.metrics else "efficacy"
        table = Table(title=f"by part: routing accuracy and {metric}, percent")
        for heading in ("part", "requests", "routing accuracy", *(evaluation.label for evaluation in self.evaluations)):
            table.add_column(heading, justify="left" if heading == "part" else "right")
        for index, name in enumerate(self.names):
            accuracy = interval_cell(self.part_accuracy(index), percent=True)
            summaries = [evaluation.summary() for evaluation in self.part(index)]
            cells = [metric_cell(summary.get(metric), METRICS[metric]) for summary in summaries]
            table.add_row(name, str(self.sizes[index]), accuracy, *cells)
        return table

    def confusion(self) -> list[list[int]]:
        """How many edit prompts and paraphrases of each part (row) were sent to each adapter (column)."""
        counts = [[0] * len(self.names) for _ in self.names]
        for route in self.routed.routes:
            if route.field in ("prompt", "paraphrases"):
                counts[route.true][route.chosen] += 1
        return counts

    def as_dict(self) -> dict[str, Any]:
        """Plain data, shares in [0, 1]."""
        return {
            "adapters": list(self.names),
            "requests": list(self.sizes),
            "accuracy": self.routed.accuracy._asdict(),
            "chance": self.chance,
            "largest_part": self.largest,
            "confusion": self.confusion(),
            "metrics": {
                name: {
                    **{key: evaluation.summary()[name]._asdict() for key, evaluation in self.by_choice().items()},
                    "lost_by_routing": self.lost[name]._asdict(),
                    "share_of_gap": self.share_of_gap(name),
                }
                for name in self.metrics
            },
            "parts": {
                name: {
                    "accuracy": self.part_accuracy(index)._asdict(),
                    **{
                        key: {name: mean for name, (mean, *_) in part.summary().items() if name in self.metrics}
                        for key, part in zip(self.by_choice(), self.part(index), strict=True)
                    },
                }
                for index, name in enumerate(self.names)
            },
        }

    def by_choice(self) -> dict[str, Evaluation]:
        """:attr:`evaluations` by who chose the adapter: ``single`` (if there is one), ``true``, ``routed``."""
        keys = ["true", "routed"] if self.single is None else ["single", "true", "routed"]
        return dict(zip(keys, self.evaluations, strict=True))
