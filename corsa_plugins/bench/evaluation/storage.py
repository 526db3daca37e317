"""Evaluations as files: every record, and a summary."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from corsa_plugins.bench.evaluation.changes import compare
from corsa_plugins.bench.evaluation.evaluation import Evaluation
from corsa_plugins.bench.evaluation.intervals import Interval
from corsa_plugins.bench.evaluation.metrics import METRICS
from corsa_plugins.bench.evaluation.moments import pair_metrics
from corsa_plugins.bench.evaluation.records import ProbeAnswer, Record
from corsa_plugins.bench.evaluation.same_questions import ReportError
from corsa_plugins.errors import DamagedError
from corsa_plugins.files import atomic_write_text, sha256_of_file
from corsa_plugins.manifest import checksums, versions
from corsa_plugins.parsing import json_value
from corsa_plugins.sealed import sealed, unsealed

__all__ = ["RECORDS", "SUMMARY", "is_evaluation", "load_evaluation", "save_evaluation"]

T = TypeVar("T")

RECORDS, UNTOUCHED, SUMMARY = "records.jsonl", "untouched.jsonl", "summary.json"


def save_evaluation(
    evaluation: Evaluation,
    directory: str | os.PathLike[str],
    *,
    baseline: Evaluation | None = None,
    later: bool = False,
    further: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``records.jsonl`` (one line per request), ``untouched.jsonl`` and ``summary.json`` into ``directory``.

    Each file is written completely or not at all; the summary comes last, so a folder with a summary is whole. It has
    the checksums of the others.

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
        **({"inputs": dict(evaluation.inputs)} if evaluation.inputs else {}),
        "versions": versions(),
        "sha256": checksums(folder, (RECORDS, UNTOUCHED)),
        "metrics": {
            name: {**_finite(interval), "definition": METRICS[name].meaning}
            for name, interval in evaluation.summary().items()
        },
        **against,
        **(further or {}),
    }
    return atomic_write_text(folder / SUMMARY, json.dumps(sealed(summary), indent=2, ensure_ascii=False) + "\n")


def _against(baseline: Evaluation, evaluation: Evaluation, later: bool) -> dict[str, Any]:
    changes = {name: _finite(change.difference) for name, change in compare(baseline, evaluation).items()}
    pairs = pair_metrics(baseline, evaluation, later=later)
    return {
        "baseline": baseline.label,
        "baseline_is": "right after the update" if later else "before the edits",
        "change": changes,
        "two_moments": {name: {**_finite(pairs[name]), "definition": METRICS[name].meaning} for name in pairs},
    }


def is_evaluation(directory: str | os.PathLike[str]) -> bool:
    """Whether :func:`save_evaluation` has written its files here, all of them."""
    return all((Path(directory) / name).is_file() for name in (SUMMARY, RECORDS))


def load_evaluation(directory: str | os.PathLike[str]) -> Evaluation:
    """Read back what :func:`save_evaluation` wrote; the two are equal.

    Raises:
        ReportError: Files are missing, or are not a saved evaluation.
    """
    folder = Path(directory)
    summary = _read(folder, SUMMARY, lambda text: dict(unsealed(json_value(text), str(folder / SUMMARY))))
    records = _read(folder, RECORDS, lambda text: [Record.model_validate_json(line) for line in _lines(text)])
    untouched = _read(folder, UNTOUCHED, lambda text: [ProbeAnswer.model_validate_json(line) for line in _lines(text)])
    try:
        for name, digest in summary.get("sha256", {}).items():  # earlier versions noted none
            if name in (RECORDS, UNTOUCHED) and sha256_of_file(folder / name) != digest:
                raise ReportError(
                    f"{folder / name} is not the file that was written: restore it, or, if it was changed on purpose, "
                    f"take its checksum out of {folder / SUMMARY}"
                )
        counted = {RECORDS: (len(records), summary["requests"]), UNTOUCHED: (len(untouched), summary["untouched"])}
        for name, (found, written) in counted.items():
            if found != written:
                raise ReportError(f"{folder / name} has {found} lines, and {written} were written: restore it")
        inputs = summary.get("inputs", {})
        return Evaluation(summary["label"], tuple(records), tuple(untouched), summary["settings"], inputs)
    except (KeyError, TypeError, AttributeError) as error:
        raise ReportError(f"{folder / SUMMARY} is no summary this version can read: {error!r}") from error


def _read(folder: Path, name: str, parse: Callable[[str], T]) -> T:
    try:
        return parse((folder / name).read_text(encoding="utf-8"))
    except DamagedError as error:
        raise ReportError(str(error)) from error
    except FileNotFoundError:
        raise ReportError(f"{folder} holds no complete evaluation: {name} is missing") from None
    except (ValueError, TypeError) as error:
        raise ReportError(f"{folder} holds no evaluation this version can read: {name}: {error}") from error


def _finite(interval: Interval) -> dict[str, Any]:
    """Strict JSON has no NaN: a mean that is not a number is written as text."""
    values = interval._asdict()
    return {key: value if value - value == 0 else str(value) for key, value in values.items()}


def _lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if line.strip()]
