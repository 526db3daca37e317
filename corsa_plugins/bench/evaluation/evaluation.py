"""One model, measured at one moment: what it answered, and every metric that follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from corsa_plugins.bench.evaluation.intervals import Interval, bootstrap_mean
from corsa_plugins.bench.evaluation.metrics import METRICS, Moments, Of, select_metrics
from corsa_plugins.bench.evaluation.records import ProbeAnswer, Record

__all__ = ["Evaluation"]


@dataclass(frozen=True)
class Evaluation:
    """One model, measured at one moment.

    Attributes:
        label: Which model and which moment, for instance ``"after all rounds"``.
        records: One per request, in the order of the requests.
        untouched: One per untouched fact, in order.
        settings: What the answers depend on besides the model: ``max_new_tokens``, ``chat_template``.
        inputs: Digests of what it is of, ``"model"`` and ``"tokenizer"``, as
            :func:`corsa_plugins.model.identity.model_key` gives them, and ``"requests"``; empty in those that earlier
            versions saved.
    """

    label: str
    records: tuple[Record, ...]
    untouched: tuple[ProbeAnswer, ...] = ()
    settings: dict[str, Any] | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def rows(self, of: Of) -> tuple[Record, ...] | tuple[ProbeAnswer, ...]:
        """What metrics of requests, or of untouched facts, have a value for."""
        return self.records if of is Of.REQUEST else self.untouched

    def values(self, metric: str) -> list[float | None]:
        """The metric's value for each request (each untouched fact, for the untouched metrics), in order.

        Raises:
            KeyError: There is no such metric, or it is one of two moments
                (:func:`~corsa_plugins.bench.evaluation.moments.pair_metrics`).
        """
        spec = METRICS[metric]
        if spec.moments is not Moments.ONE:
            raise KeyError(f"{metric} is a metric of two moments")
        values = [spec.value(row) for row in self.rows(spec.of)]
        return [None if value is None else float(value) for value in values]

    def summary(self) -> dict[str, Interval]:
        """Mean and 95 % bootstrap interval of every metric that has something to measure, by name."""
        summary = {}
        for metric in select_metrics(of=None):
            values = [value for value in self.values(metric.name) if value is not None]
            if values:
                summary[metric.name] = bootstrap_mean(values)
        return summary
