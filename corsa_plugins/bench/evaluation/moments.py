"""Metrics of two moments: what a model answered then, and what it answers now.

Which two moments is part of the definition, so each metric says it: *before* an edit and *after* it (locality), or
*right after* an update and *later*, after further updates (forgetting, old-knowledge activation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from corsa_plugins.bench.evaluation.evaluation import Evaluation
from corsa_plugins.bench.evaluation.intervals import Interval, bootstrap_mean
from corsa_plugins.bench.evaluation.metrics import Moments, select_metrics
from corsa_plugins.bench.evaluation.same_questions import ReportError, check_same_questions

__all__ = ["UpdateSequence", "pair_metrics", "update_sequence"]


def pair_metrics(then: Evaluation, now: Evaluation, *, later: bool = False) -> dict[str, Interval]:
    """Mean and 95 % bootstrap interval of the metrics of two moments, by name.

    Args:
        then: The model before the edits; with ``later``, the edited model right after the update the requests are of.
        now: The model after the edits; with ``later``, after further updates.
        later: Which two moments these are, and so which metrics: of :attr:`Moments.LATER` or of :attr:`Moments.EDIT`.

    Raises:
        ReportError: The evaluations are not of the same prompts, or were asked with different settings.
    """
    check_same_questions(then, now)
    whole_output = bool((now.settings or {}).get("chat_template"))
    intervals = {}
    for metric in select_metrics(of=None, moments=Moments.LATER if later else Moments.EDIT):
        pairs = zip(then.rows(metric.of), now.rows(metric.of), strict=True)
        values = [metric.value(before, after, whole_output) for before, after in pairs]
        known = [float(value) for value in values if value is not None]
        if known:
            intervals[metric.name] = bootstrap_mean(known)
    return intervals


@dataclass(frozen=True)
class UpdateSequence:
    """Updates one after the other on one model (CoRSA paper, 4.3 and 4.4); one entry for each update, in order.

    Attributes:
        update_efficacy: Generality of each update's requests right after that update.
        forgetting: What of it was lost at the end; ``None`` for the last update, which nothing followed.
        old_activation: Share of its old answers that came back by the end; ``None`` for the last, or without old
            answers.
    """

    update_efficacy: tuple[Interval | None, ...]
    forgetting: tuple[Interval | None, ...]
    old_activation: tuple[Interval | None, ...]


def update_sequence(right_after: Sequence[Evaluation], at_the_end: Sequence[Evaluation]) -> UpdateSequence:
    """Update efficacy, forgetting and old-knowledge activation over a sequence of updates.

    Args:
        right_after: Each update's requests, evaluated right after that update.
        at_the_end: The same requests, evaluated after the last update, in the same order; that of the last update
            itself may be left out, as nothing came after it.

    Raises:
        ReportError: The numbers of evaluations do not fit, or two that belong together asked different questions.
    """
    if not right_after or len(at_the_end) not in (len(right_after), len(right_after) - 1):
        raise ReportError(
            f"{len(right_after)} evaluations right after an update and {len(at_the_end)} at the end: give one of each "
            "for every update; the last needs none at the end"
        )
    later = [pair_metrics(first, last, later=True) for first, last in zip(right_after[:-1], at_the_end, strict=False)]
    return UpdateSequence(
        update_efficacy=tuple(evaluation.summary().get("generality") for evaluation in right_after),
        forgetting=(*(metrics.get("forgetting") for metrics in later), None),
        old_activation=(*(metrics.get("old_activation") for metrics in later), None),
    )
