"""Metrics of two moments: what a model answered then, and what it answers now.

Which two moments is part of the definition, so each metric says it: *before* an edit and *after* it (locality), or
*right after* an update and *later*, after further updates (forgetting, old-knowledge activation).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from corsa_plugins.bench.evaluation.metrics import Interval, bootstrap_mean, mean
from corsa_plugins.bench.evaluation.records import METRICS, Answer, Evaluation, ProbeAnswer, Record
from corsa_plugins.data.answers import same_answer
from corsa_plugins.data.requests import EditRequest, Probe
from corsa_plugins.errors import CorsaError
from corsa_plugins.model.asking import cut_answer

__all__ = [
    "EDIT_METRICS",
    "LATER_METRICS",
    "PairMetric",
    "ReportError",
    "UpdateSequence",
    "check_asked",
    "check_same_questions",
    "pair_metrics",
    "update_sequence",
]


class ReportError(CorsaError, ValueError):
    """A saved evaluation that cannot be read, or evaluations that cannot be compared."""


def check_same_questions(first: Evaluation, second: Evaluation) -> None:
    """Raise unless two evaluations asked the same prompts in the same way, and took the same answers for right.

    Raises:
        ReportError: They did not: a difference between them would not be the model's.
    """
    if first.settings != second.settings:
        raise ReportError(
            f"{first.label!r} and {second.label!r} were asked differently ({first.settings} and {second.settings}): "
            "evaluate both with the same settings"
        )
    if _prompts(first) != _prompts(second):
        raise ReportError(
            f"{first.label!r} and {second.label!r} were asked different prompts, or judged by different right answers: "
            "evaluate both on the same files"
        )


def _prompts(evaluation: Evaluation) -> list[Any]:
    asked: list[Any] = [
        (
            record.target_new,
            record.target_old,
            [answer.prompt for answer in (record.edit, *record.paraphrases)],
            [_asked(answer) for answer in (*record.neighborhood, *record.portability)],
        )
        for record in evaluation.records
    ]
    return [*asked, *(_asked(answer) for answer in evaluation.untouched)]


def _asked(probe: Probe | ProbeAnswer) -> tuple[str, str | None, tuple[str, ...]]:
    return probe.prompt, probe.answer, probe.aliases


def check_asked(
    evaluation: Evaluation, requests: Sequence[EditRequest], untouched: Sequence[Probe], settings: Mapping[str, Any]
) -> None:
    """Raise unless an evaluation, a saved one for instance, can be compared with one that is still to be made.

    Raises:
        ReportError: It was made of other requests or facts, or with other settings.
    """
    wanted_prompts: list[Any] = [
        (
            request.target_new,
            request.target_old,
            [request.prompt, *request.paraphrases],
            [_asked(probe) for probe in (*request.neighborhood, *request.portability)],
        )
        for request in requests
    ]
    asked = _prompts(evaluation)
    if asked[: len(evaluation.records)] != wanted_prompts:
        raise ReportError(f"{evaluation.label!r} is of other requests: evaluate it on these")
    if asked[len(evaluation.records) :] != [_asked(probe) for probe in untouched]:
        raise ReportError(
            f"{evaluation.label!r} is of {len(evaluation.untouched)} untouched facts, and here are {len(untouched)}, "
            "not the same: give --untouched what it was given then"
        )
    wanted = {name: value for name, value in settings.items() if value is not None}
    if evaluation.settings is not None and evaluation.settings != wanted:
        raise ReportError(f"{evaluation.label!r} was asked with {evaluation.settings}: give the same settings")


def _unchanged(then: Sequence[ProbeAnswer], now: Sequence[ProbeAnswer], whole_output: bool) -> float | None:
    def judged(output: str) -> str:
        return output if whole_output else cut_answer(output)

    return mean([float(same_answer(judged(a.output), judged(b.output))) for a, b in zip(then, now, strict=True)])


def _came_back(then: Sequence[Answer], now: Sequence[Answer]) -> float | None:
    return mean(
        [float(bool(b.says_old) and not a.says_old) for a, b in zip(then, now, strict=True) if b.says_old is not None]
    )


def _lost(metric: str) -> Callable[[Record, Record, bool], float | None]:
    def value(then: Record, now: Record, _: bool) -> float | None:
        before, after = METRICS[metric].value(then), METRICS[metric].value(now)
        return None if before is None or after is None else before - after

    return value


@dataclass(frozen=True)
class PairMetric:
    """One number per request, from its records at two moments. All are shares.

    Attributes:
        title: For tables.
        value: Of the records then and now, and whether the whole output is the answer (with a chat template).
        definition: What is counted, and the source of the definition.
        better: ``1`` if higher is better, ``-1`` if lower is.
    """

    title: str
    value: Callable[[Record, Record, bool], float | None]
    definition: str
    better: int = 1


EDIT_METRICS: dict[str, PairMetric] = {
    "locality": PairMetric(
        "Locality",
        lambda then, now, whole: _unchanged(then.neighborhood, now.neighborhood, whole),
        "the answer is what it was before the edit, right or wrong, mean over a request's neighborhood probes "
        "(papers/model-merging-for-knowledge-editing.md, A.3)",
    ),
}
"""Metrics of the moments before an edit and after it."""

LATER_METRICS: dict[str, PairMetric] = {
    "forgetting": PairMetric(
        "Forgetting",
        _lost("generality"),
        "generality right after the update minus generality now, after later updates (CoRSA paper, 4.3)",
        better=-1,
    ),
    "forgetting_edit_prompt": PairMetric(
        "Forgetting, edit prompts",
        _lost("efficacy"),
        "efficacy right after the update minus efficacy now, after later updates (CoRSA paper, 4.3, on edit prompts)",
        better=-1,
    ),
    "old_activation": PairMetric(
        "Old-knowledge activation",
        lambda then, now, _: _came_back(then.paraphrases, now.paraphrases),
        "target_old is in the answer now, after later updates, and was not right after the update; share of all of a "
        "request's paraphrases (CoRSA paper, 4.4)",
        better=-1,
    ),
}
"""Metrics of the moments right after an update and after later ones."""

_UNTOUCHED_LOCALITY = "untouched_locality"


def pair_metrics(then: Evaluation, now: Evaluation, *, later: bool = False) -> dict[str, Interval]:
    """Mean and 95 % bootstrap interval of the metrics of two moments, by name.

    Args:
        then: The model before the edits; with ``later``, the edited model right after the update the requests are of.
        now: The model after the edits; with ``later``, after further updates.
        later: Which two moments these are, and so which metrics: :data:`LATER_METRICS` or :data:`EDIT_METRICS`.

    Raises:
        ReportError: The evaluations are not of the same prompts, or were asked with different settings.
    """
    check_same_questions(then, now)
    whole = bool((now.settings or {}).get("chat_template"))
    found = {}
    for name, metric in (LATER_METRICS if later else EDIT_METRICS).items():
        values = [metric.value(a, b, whole) for a, b in zip(then.records, now.records, strict=True)]
        kept = [value for value in values if value is not None]
        if kept:
            found[name] = bootstrap_mean(kept)
    if not later and now.untouched:
        same = [_unchanged([a], [b], whole) for a, b in zip(then.untouched, now.untouched, strict=True)]
        found[_UNTOUCHED_LOCALITY] = bootstrap_mean([value for value in same if value is not None])
    return found


def pair_title(name: str) -> tuple[str, str]:
    """Title and definition of a metric of :func:`pair_metrics`."""
    if name == _UNTOUCHED_LOCALITY:
        return "Locality, untouched facts", (
            "the answer to a fact that no request is about is what it was before "
            "(papers/model-merging-for-knowledge-editing.md, A.3)"
        )
    metric = {**EDIT_METRICS, **LATER_METRICS}[name]
    return metric.title, metric.definition


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
        forgetting=(*(found.get("forgetting") for found in later), None),
        old_activation=(*(found.get("old_activation") for found in later), None),
    )
