"""What changed between two evaluations of the same requests, metric by metric."""

from __future__ import annotations

from dataclasses import dataclass

from corsa_plugins.bench.evaluation.evaluation import Evaluation
from corsa_plugins.bench.evaluation.intervals import Interval, bootstrap_mean
from corsa_plugins.bench.evaluation.metrics import select_metrics
from corsa_plugins.bench.evaluation.same_questions import check_same_questions

__all__ = ["Change", "compare"]


@dataclass(frozen=True)
class Change:
    """A metric before and after.

    Attributes:
        before: Mean and interval before.
        after: Mean and interval after.
        difference: After minus before on the same requests, its interval from paired resampling.
    """

    before: Interval
    after: Interval
    difference: Interval


def compare(before: Evaluation, after: Evaluation) -> dict[str, Change]:
    """What changed between two evaluations of the same requests, by metric.

    Raises:
        ReportError: The evaluations are not of the same prompts, or were asked with different settings: the difference
            would not be the model's.
    """
    check_same_questions(before, after)
    changes = {}
    for metric in select_metrics(of=None):
        pairs = [
            (old, new)
            for old, new in zip(before.values(metric.name), after.values(metric.name), strict=True)
            if old is not None and new is not None
        ]
        if pairs:
            changes[metric.name] = Change(
                bootstrap_mean([old for old, _ in pairs]),
                bootstrap_mean([new for _, new in pairs]),
                bootstrap_mean([new - old for old, new in pairs]),
            )
    return changes
