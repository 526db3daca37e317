"""Methods that were taken through the same plan, as one page."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from corsa_plugins.bench.evaluation import Evaluation, Interval, Metric
from corsa_plugins.bench.evaluation.metrics import Moments, Of, Shown, select_metrics
from corsa_plugins.bench.protocols.comparison import MethodRun
from corsa_plugins.bench.protocols.plan import UNTOUCHED, UpdatePlan
from corsa_plugins.bench.protocols.result import ProtocolResult, ProtocolSummary
from corsa_plugins.bench.protocols.shares import ForgettingPoint
from corsa_plugins.errors import SettingError
from corsa_plugins.report.page import Comparison, Conflict, HarnessScore, history_points, write_report

__all__ = ["comparisons", "write_protocol_page", "write_runs_page"]

MOST_TABLES = 5
"""Updates that get tables of their own; of a longer run there are only those over all updates together."""


def write_protocol_page(
    path: str | os.PathLike[str],
    results: Sequence[ProtocolResult],
    *,
    asked: Mapping[str, Any],
    title: str | None = None,
    notes: Sequence[str] = (),
    forgetting: Sequence[ForgettingPoint] = (),
    harness: Sequence[HarnessScore] = (),
) -> Path:
    """Write a page about runs of one plan: tables by moment, training, and every request with all answers.

    Args:
        path: The file, for instance ``runs/report.html``.
        results: One for each method, in the order of the rows; all of the same plan.
        asked: What was run, shown as it is.
        title: By default the name of the protocol.
        notes: Paragraphs for the reader.
        forgetting: Of runs with a part of the data.
        harness: Scores of general ability.

    Raises:
        SettingError: No results, of different plans, or two of one name.
        OSError: The file cannot be written.
    """
    if not results or any(result.plan != results[0].plan for result in results):
        raise SettingError(f"{len(results)} results of a protocol: give at least one, and all of the same plan")
    names = [result.method for result in results]
    if len(set(names)) < len(names):
        raise SettingError(f"two results are called alike ({', '.join(names)}): give methods names that differ")
    plan = results[0].plan
    history = [
        point
        for result in results
        for number, records in sorted(result.histories.items())
        for point in history_points(records, _run_name(result.method, plan, number))
    ]
    return write_report(
        path,
        (),
        title=title or plan.name,
        asked=asked,
        notes=notes,
        comparisons=comparisons(results),
        answers=_answers(results),
        history=history,
        forgetting=forgetting,
        conflicts=_conflicts(results),
        harness=harness,
    )


def write_runs_page(path: str | os.PathLike[str], runs: Sequence[MethodRun], *, asked: Mapping[str, Any]) -> Path:
    """Write a page about methods that were taken through one plan, with forgetting by share and general ability.

    Args:
        path: The file.
        runs: Of :func:`corsa_plugins.bench.protocols.run_methods`.
        asked: What was run, shown as it is.

    Raises:
        SettingError, OSError: As for :func:`write_protocol_page`.
    """
    abilities = [(run.result.method, *run.ability) for run in runs if run.ability]
    scores = [score for _, before, _ in abilities[:1] for score in HarnessScore.of(before, "before")]
    scores += [score for method, _, after in abilities for score in HarnessScore.of(after, method, "before")]
    return write_protocol_page(
        path,
        [run.result for run in runs],
        asked=asked,
        harness=scores,
        forgetting=[point for run in runs for point in run.forgetting],
    )


def _conflicts(results: Sequence[ProtocolResult]) -> list[Conflict]:
    """Those of the last method that reports any: what conflicts is hardly of the method, so one tells it all."""
    told = [conflicts for result in results if (conflicts := _conflicts_of(result))]
    return told[-1] if told else []


def _conflicts_of(result: ProtocolResult) -> list[Conflict]:
    """A report is its method's own: only what has the figures of a conflict is one."""
    return [
        Conflict(row["preserved_conflict"], row["prior_conflict"], row["inconsistency"], update.name)
        for number, update in enumerate(result.plan.sets, start=1)
        for row in result.reports.get(number, {}).get("requests", ())
        if {"preserved_conflict", "prior_conflict", "inconsistency"} <= row.keys()
    ]


def _run_name(method: str, plan: UpdatePlan, number: int) -> str:
    return method if len(plan.sets) == 1 else f"{method}, {plan.sets[number - 1].name}"


def comparisons(results: Sequence[ProtocolResult]) -> list[Comparison]:
    """Tables of a protocol: after each update what it did, and after all of them what is left of it."""
    plan = results[0].plan
    found = [result.summary() for result in results]
    models = ["before", *(result.method for result in results)]
    count = len(plan.sets)
    compared = select_metrics(shown=Shown.COMPARED)
    tables = []
    if count <= MOST_TABLES:
        for index, one in enumerate(plan.sets):
            heading = f"Right after update {index + 1}: {one.name}, {len(one.requests)} requests"
            before, after = _update(index, "before"), _update(index, "right_after")
            metrics = _metrics(compared, [before(found[0]), *map(after, found)])
            tables.append(Comparison(heading, models, [*metrics, *_untouched(found, index)]))
    if count > 1:
        everything = [summary.right_after for summary in found]
        metrics = _metrics(compared, everything)
        heading = "All updates, each right after it"
        caption = "Generality here is the update efficacy of a sequence (CoRSA paper, 4.3)."
        tables.append(Comparison(heading, models[1:], metrics, caption))
        metrics = _metrics(select_metrics(shown=Shown.EVERYWHERE), [summary.at_the_end for summary in found])
        later = select_metrics(moments=Moments.LATER, shown=Shown.COMPARED)
        metrics += _metrics(later, [summary.later for summary in found])
        metrics += [(title, better, means[1:]) for title, better, means in _untouched(found, count - 1)]
        heading = "After all updates, the requests of all that still hold"
        caption = (
            "Forgetting and old-knowledge activation are of all updates but the last, from right after each to the end."
        )
        tables.append(Comparison(heading, models[1:], metrics, caption))
    return tables


def _update(index: int, part: str) -> Callable[[ProtocolSummary], Mapping[str, Interval]]:
    return lambda summary: getattr(summary.updates[index], part)


def _metrics(
    metrics: Sequence[Metric], models: Sequence[Mapping[str, Interval]]
) -> list[tuple[str, int, Sequence[Interval | None]]]:
    return [
        (metric.title_with_unit, metric.better, [model.get(metric.name) for model in models])
        for metric in metrics
        if any(metric.name in model for model in models)
    ]


def _untouched(found: Sequence[ProtocolSummary], index: int) -> list[tuple[str, int, Sequence[Interval | None]]]:
    models = [found[0].untouched_before, *(summary.updates[index].untouched for summary in found)]
    return _metrics(select_metrics(of=Of.FACT, shown=Shown.COMPARED), models)


def _answers(results: Sequence[ProtocolResult]) -> list[list[Evaluation]]:
    """For each update its requests as every method answers them: before, right after, and in the end.

    Those of the last update are the same at both, and have both labels: who chooses a moment means all requests.
    """
    plan = results[0].plan
    last = len(plan.sets)
    groups = []
    for number, one in enumerate(plan.sets, start=1):
        asked: list[tuple[str, Evaluation]] = []
        if (0, one.name) in results[0].evaluations:
            asked.append(("before", results[0].at(0, one.name)))
        moments = [(number, ", right after" if last > 1 else "")]
        moments += [(last, ", at the end")] if last > 1 else []
        asked += [(f"{r.method}{when}", r.at(moment, one.name)) for moment, when in moments for r in results]
        groups.append([replace(evaluation, label=label) for label, evaluation in asked])
    if plan.untouched:
        when = ", at the end" if last > 1 else ""
        facts = [
            ("before", results[0].at(0, UNTOUCHED)),
            *((f"{r.method}{when}", r.at(last, UNTOUCHED)) for r in results),
        ]
        groups.append([replace(evaluation, label=label) for label, evaluation in facts])
    return groups
