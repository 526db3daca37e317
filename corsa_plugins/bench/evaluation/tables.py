"""Evaluations as files and as tables."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from corsa_plugins.bench.evaluation.metrics import Interval, bootstrap_mean
from corsa_plugins.bench.evaluation.moments import ReportError, check_same_questions, pair_metrics, pair_title
from corsa_plugins.bench.evaluation.records import METRICS, UNTOUCHED_METRICS, Evaluation, ProbeAnswer, Record
from corsa_plugins.files import atomic_write_text

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "Change",
    "ReportError",
    "change_table",
    "compare",
    "interval_cell",
    "is_share",
    "load_evaluation",
    "metric_definition",
    "metric_title",
    "save_evaluation",
    "summary_table",
]

RECORDS, UNTOUCHED, SUMMARY = "records.jsonl", "untouched.jsonl", "summary.json"


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
    for name in (*METRICS, *UNTOUCHED_METRICS):
        pairs = [
            (old, new)
            for old, new in zip(before.values(name), after.values(name), strict=True)
            if old is not None and new is not None
        ]
        if pairs:
            changes[name] = Change(
                bootstrap_mean([old for old, _ in pairs]),
                bootstrap_mean([new for _, new in pairs]),
                bootstrap_mean([new - old for old, new in pairs]),
            )
    return changes


def save_evaluation(
    evaluation: Evaluation,
    directory: str | os.PathLike[str],
    *,
    baseline: Evaluation | None = None,
    later: bool = False,
    further: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``records.jsonl`` (one line per request), ``untouched.jsonl`` and ``summary.json`` into ``directory``.

    Each file is written completely or not at all; the summary comes last, so a folder with a summary is whole.

    Args:
        evaluation: What to write.
        directory: Made if it is not there.
        baseline: What to compare with, in the summary: the change of every metric, and those of two moments.
        later: Which two moments these are, as for :func:`~corsa_plugins.bench.evaluation.moments.pair_metrics`.
        further: Entries to add to the summary, plain data for JSON.

    Returns:
        The path of the summary.

    Raises:
        OSError: A file cannot be written.
        ReportError: The baseline was asked other questions.
    """
    against = _against(baseline, evaluation, later) if baseline else {}
    folder = Path(directory)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: name a folder for the results")
    (folder / SUMMARY).unlink(missing_ok=True)
    for name, records in ((RECORDS, evaluation.records), (UNTOUCHED, evaluation.untouched)):
        atomic_write_text(folder / name, "".join(record.model_dump_json() + "\n" for record in records))
    summary = {
        "label": evaluation.label,
        "requests": len(evaluation.records),
        "untouched": len(evaluation.untouched),
        "settings": evaluation.settings,
        "metrics": {
            name: {**_finite(interval), "definition": metric_definition(name)}
            for name, interval in evaluation.summary().items()
        },
        **against,
        **(further or {}),
    }
    return atomic_write_text(folder / SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


def _against(baseline: Evaluation, evaluation: Evaluation, later: bool) -> dict[str, Any]:
    changes = {name: _finite(change.difference) for name, change in compare(baseline, evaluation).items()}
    pairs = pair_metrics(baseline, evaluation, later=later)
    return {
        "baseline": baseline.label,
        "baseline_is": "right after the update" if later else "before the edits",
        "change": changes,
        "two_moments": {name: {**_finite(pairs[name]), "definition": pair_title(name)[1]} for name in pairs},
    }


def load_evaluation(directory: str | os.PathLike[str]) -> Evaluation:
    """Read back what :func:`save_evaluation` wrote; the two are equal.

    Raises:
        ReportError: Files are missing, or are not a saved evaluation.
    """
    folder = Path(directory)
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        records = [Record.model_validate_json(line) for line in _lines(folder / RECORDS)]
        untouched = [ProbeAnswer.model_validate_json(line) for line in _lines(folder / UNTOUCHED)]
        return Evaluation(summary["label"], tuple(records), tuple(untouched), summary["settings"])
    except FileNotFoundError as error:
        raise ReportError(f"{folder} holds no complete evaluation: {Path(error.filename).name} is missing") from None
    except (ValidationError, ValueError, KeyError, TypeError) as error:
        raise ReportError(f"{folder} holds no evaluation this version can read: {error}") from error


def summary_table(
    evaluations: Sequence[Evaluation], metrics: Sequence[str] | None = None, title: str | None = None
) -> Table:
    """A table for the terminal: a row per metric, a column per evaluation, each mean with its 95 % interval.

    Args:
        evaluations: One or more; each is headed by its label.
        metrics: Which rows; by default all that any of the evaluations has.
        title: Above the table.
    """
    from rich.table import Table

    summaries = [evaluation.summary() for evaluation in evaluations]
    table = Table(title=title)
    table.add_column("")
    for evaluation in evaluations:
        table.add_column(evaluation.label, justify="right")
    for name in metrics or [name for name in (*METRICS, *UNTOUCHED_METRICS) if any(name in s for s in summaries)]:
        cells = [_cell(summary[name], name) if name in summary else "" for summary in summaries]
        table.add_row(metric_title(name), *cells)
    return table


def change_table(before: Evaluation, after: Evaluation, title: str | None = None, *, later: bool = False) -> Table:
    """A table of :func:`compare`: before, after, and the change with its 95 % interval; then metrics of two moments.

    Args:
        before: Also the earlier of the two moments.
        after: The later one.
        title: Above the table.
        later: Which two moments these are, as for :func:`~corsa_plugins.bench.evaluation.moments.pair_metrics`.
    """
    from rich.table import Table

    table = Table(title=title)
    table.add_column("")
    for heading in (before.label, after.label, "change"):
        table.add_column(heading, justify="right")
    for name, change in compare(before, after).items():
        difference = _cell(change.difference, name, sign="+")
        table.add_row(metric_title(name), _cell(change.before, name), _cell(change.after, name), difference)
    for name, interval in pair_metrics(before, after, later=later).items():
        table.add_row(f"{pair_title(name)[0]}, %", "", interval_cell(interval, percent=True), "")
    return table


def metric_title(name: str) -> str:
    """A metric's title with its unit."""
    if name in UNTOUCHED_METRICS:
        return f"{UNTOUCHED_METRICS[name][0]}, %"
    metric = METRICS[name]
    return f"{metric.title}, {'%' if metric.percent else metric.unit}"


def metric_definition(name: str) -> str:
    """What a metric counts, and where its definition comes from."""
    return UNTOUCHED_METRICS[name][2] if name in UNTOUCHED_METRICS else METRICS[name].definition


def is_share(name: str) -> bool:
    """Whether a metric is a share, shown in percent."""
    return name in UNTOUCHED_METRICS or METRICS[name].percent


def interval_cell(interval: Interval, *, percent: bool, sign: str = "") -> str:
    """A mean with its interval, as text."""
    scale, digits = (100, 1) if percent else (1, 2)
    mean, low, high = (f"{scale * value:{sign}.{digits}f}" for value in interval[:3])
    return f"{mean}  [{low}, {high}]"


def _cell(interval: Interval, name: str, sign: str = "") -> str:
    return interval_cell(interval, percent=is_share(name), sign=sign)


def _finite(interval: Interval) -> dict[str, Any]:
    """Strict JSON has no NaN: a mean that is not a number is written as text."""
    values = interval._asdict()
    return {key: value if value - value == 0 else str(value) for key, value in values.items()}


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
