"""Methods that were taken through the same plan, as one page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
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
from corsa_plugins.parsing import is_number
from corsa_plugins.report.page import Column, Comparison, Report, write_report
from corsa_plugins.report.sections import ABILITY, CONFLICTS, DRIFT, EFFECTS, FORGETTING, HISTORY, WILD
from corsa_plugins.report.sections.ability import HarnessScore
from corsa_plugins.report.sections.conflicts import Conflict
from corsa_plugins.report.sections.drift import Drift
from corsa_plugins.report.sections.effects import EffectRow
from corsa_plugins.report.sections.history import history_points

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
    parts: Mapping[str, Sequence[Any]] | None = None,
) -> Path:  # a keyword for each part of the page
    """Write a page about runs of one plan: tables by moment, training, and every request with all answers.

    Args:
        path: The file, for instance ``runs/report.html``.
        results: One for each method, in the order of the rows; all of the same plan.
        asked: What was run, shown as it is.
        title: By default the name of the protocol.
        notes: Paragraphs for the reader.
        forgetting: Of runs with a part of the data.
        harness: Scores of general ability.
        parts: What further sections show, by their names.

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
    report = Report(
        title or plan.name,
        asked=asked,
        notes=notes,
        comparisons=comparisons(results),
        answers=_answers(results),
        parts={
            EFFECTS.name: _effects(results),
            HISTORY.name: history,
            FORGETTING.name: forgetting,
            CONFLICTS.name: _conflicts(results),
            ABILITY.name: harness,
            **(parts or {}),
        },
    )
    return write_report(path, report)


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
        parts={
            WILD.name: [run.wild.figures() for run in runs if run.wild],
            DRIFT.name: [Drift(run.result.method, run.drift) for run in runs if run.drift],
        },
    )


def _effects(results: Sequence[ProtocolResult]) -> list[EffectRow]:
    rows = [
        EffectRow.of_report(_run_name(result.method, result.plan, number), report)
        for result in results
        for number, report in sorted(result.reports.items())
    ]
    return [row for row in rows if row]


def _conflicts(results: Sequence[ProtocolResult]) -> list[Conflict]:
    """Those of the last method that reports any: what conflicts is hardly of the method, so one tells it all."""
    told = [conflicts for result in results if (conflicts := _conflicts_of(result))]
    return told[-1] if told else []


_OF_CONFLICTS = ("preserved_conflict", "prior_conflict", "inconsistency")


def _conflicts_of(result: ProtocolResult) -> list[Conflict]:
    """A report is its method's own: only what has the figures of a conflict is one."""
    return [
        Conflict(row["preserved_conflict"], row["prior_conflict"], row["inconsistency"], update.name)
        for number, update in enumerate(result.plan.sets, start=1)
        for row in _rows(result.reports.get(number, {}).get("requests"))
        if all(name in row and (row[name] is None or is_number(row[name])) for name in _OF_CONFLICTS)
    ]


def _rows(told: Any) -> list[Mapping[str, Any]]:
    return [row for row in told if isinstance(row, Mapping)] if isinstance(told, list) else []


def _run_name(method: str, plan: UpdatePlan, number: int) -> str:
    return method if len(plan.sets) == 1 else f"{method}, {plan.sets[number - 1].name}"


def comparisons(results: Sequence[ProtocolResult]) -> list[Comparison]:
    """Tables of a protocol: after each update what it did, and after all of them what is left of it."""
    summaries = [result.summary() for result in results]
    methods = [result.method for result in results]
    sets = results[0].plan.sets
    tables = []
    if len(sets) <= MOST_TABLES:
        for index, update in enumerate(sets):
            heading = f"Right after update {index + 1}: {update.name}, {len(update.requests)} requests"
            tables.append(Comparison(heading, ["before", *methods], _right_after(summaries, index)))
    if len(sets) > 1:
        columns = _columns(select_metrics(shown=Shown.COMPARED), [summary.right_after for summary in summaries])
        caption = "Generality here is the update efficacy of a sequence (CoRSA paper, 4.3)."
        tables.append(Comparison("All updates, each right after it", methods, columns, caption))
        heading = "After all updates, the requests of all that still hold"
        caption = (
            "Forgetting and old-knowledge activation are of all updates but the last, from right after each to the end."
        )
        tables.append(Comparison(heading, methods, _at_the_end(summaries), caption))
    return tables


def _right_after(summaries: Sequence[ProtocolSummary], index: int) -> list[Column]:
    """An update's requests before the first update, and right after it by each method; and the untouched facts."""
    right_after = [summary.updates[index].right_after for summary in summaries]
    untouched = [summary.updates[index].untouched for summary in summaries]
    first = summaries[0]
    return [
        *_columns(select_metrics(shown=Shown.COMPARED), [first.updates[index].before, *right_after]),
        *_columns(select_metrics(of=Of.FACT, shown=Shown.COMPARED), [first.untouched_before, *untouched]),
    ]


def _at_the_end(summaries: Sequence[ProtocolSummary]) -> list[Column]:
    """What is left, what was lost on the way, and the untouched facts."""
    later = select_metrics(moments=Moments.LATER, shown=Shown.COMPARED)
    untouched = [summary.updates[-1].untouched for summary in summaries]
    return [
        *_columns(select_metrics(shown=Shown.EVERYWHERE), [summary.at_the_end for summary in summaries]),
        *_columns(later, [summary.later for summary in summaries]),
        *_columns(select_metrics(of=Of.FACT, shown=Shown.COMPARED), untouched),
    ]


def _columns(metrics: Sequence[Metric], models: Sequence[Mapping[str, Interval]]) -> list[Column]:
    """A column for each metric that any of the models was measured by."""
    return [Column.of(metric, models) for metric in metrics if any(metric.name in model for model in models)]


def _answers(results: Sequence[ProtocolResult]) -> list[list[Evaluation]]:
    """For each update its requests as every method answers them: before, right after, and in the end.

    Those of the last update are the same at both, and have both labels: who chooses a moment means all requests.
    """
    plan = results[0].plan
    last = len(plan.sets)
    groups = []
    for number, update in enumerate(plan.sets, start=1):
        moments = [(number, ", right after"), (last, ", at the end")] if last > 1 else [(number, "")]
        before = [_labelled(results[0], 0, update.name, "before")] if (0, update.name) in results[0].evaluations else []
        after = [
            _labelled(result, moment, update.name, f"{result.method}{when}")
            for moment, when in moments
            for result in results
        ]
        groups.append([*before, *after])
    if plan.untouched:
        when = ", at the end" if last > 1 else ""
        after = [_labelled(result, last, UNTOUCHED, f"{result.method}{when}") for result in results]
        groups.append([_labelled(results[0], 0, UNTOUCHED, "before"), *after])
    return groups


def _labelled(result: ProtocolResult, moment: int, name: str, label: str) -> Evaluation:
    return replace(result.at(moment, name), label=label)
