"""What several adapters answered, as files and as one page."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from corsa_plugins.bench.evaluation import METRICS, Interval, save_evaluation
from corsa_plugins.bench.routing.report import RoutingReport
from corsa_plugins.files import atomic_write_text
from corsa_plugins.report.page import Column, Comparison, Report, versions, write_report

__all__ = ["UNFINISHED", "save_adapters", "write_adapters_page"]

ROUTES = "routes.jsonl"
ROUTING = "routing.json"
UNFINISHED = "unfinished"
"""Where what is answered so far belongs, in the folder of the results."""


def save_adapters(
    report: RoutingReport,
    folder: str | os.PathLike[str],
    *,
    asked: Mapping[str, Any],
    descriptions: Mapping[str, str] | None = None,
) -> Path:
    """Write a report of several adapters into a folder, and take away what was kept there while it was measured.

    Args:
        report: As :func:`~corsa_plugins.bench.routing.several.measure_adapters` gives it.
        folder: Made if it is not there. It gets ``report.html``, ``routes.jsonl`` (a line per prompt: where it belongs,
            and where it went), ``routing.json`` (the figures) and an evaluation for every choice.
        asked: What was run; shown as it is, but for what is ``None``.
        descriptions: Of the adapters, by name, where the router read any.

    Returns:
        The path of the page.

    Raises:
        OSError: A file cannot be written.
    """
    target = Path(folder)
    told = {name: value for name, value in asked.items() if value is not None}
    for choice, evaluation in report.by_choice().items():
        save_evaluation(evaluation, target / choice)
    rows = (
        {**asdict(route), "true": report.names[route.true], "chosen": report.names[route.chosen]}
        for route in report.routed.routes
    )
    atomic_write_text(target / ROUTES, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    text = json.dumps({"asked": told, **report.as_dict()}, indent=2, ensure_ascii=False)
    atomic_write_text(target / ROUTING, text + "\n")
    page = write_adapters_page(report, target / "report.html", asked=told, descriptions=descriptions)
    shutil.rmtree(target / UNFINISHED, ignore_errors=True)
    return page


def write_adapters_page(
    report: RoutingReport,
    path: str | os.PathLike[str],
    *,
    asked: Mapping[str, Any],
    descriptions: Mapping[str, str] | None = None,
) -> Path:
    """Write a page about several adapters: tables over all requests and by part, and every prompt with its answers.

    Args:
        report: What was measured.
        path: The file.
        asked: What was run, shown as it is.
        descriptions: Of the adapters, by name.

    Raises:
        OSError: The file cannot be written.
    """
    content = Report(
        "Several adapters",
        asked={**asked, **versions()},
        comparisons=[_overall(report), _by_part(report)],
        answers=[report.evaluations],
        notes=[f"{name}: {description}" for name, description in (descriptions or {}).items()],
    )
    return write_report(path, content)


def _overall(report: RoutingReport) -> Comparison:
    summaries = [evaluation.summary() for evaluation in report.evaluations]
    return Comparison(
        f"{sum(report.sizes)} requests, {len(report.names)} adapters",
        [evaluation.label for evaluation in report.evaluations],
        [_accuracy([*_blank(report), report.routed.accuracy]), *_columns(report, summaries)],
        f"Of edit prompts and paraphrases; a router that draws is right in {100 * report.chance:.1f} %.",
    )


def _by_part(report: RoutingReport) -> Comparison:
    summaries = [evaluation.summary() for index in range(len(report.names)) for evaluation in report.part(index)]
    accuracies: list[Interval | None] = []
    for index in range(len(report.names)):
        accuracies += [*_blank(report), report.part_accuracy(index)]
    return Comparison(
        "By part",
        [f"{name}: {evaluation.label}" for name in report.names for evaluation in report.evaluations],
        [_accuracy(accuracies), *_columns(report, summaries)],
    )


def _columns(report: RoutingReport, summaries: Sequence[Mapping[str, Interval]]) -> list[Column]:
    return [Column.of(METRICS[name], summaries) for name in report.metrics]


def _accuracy(means: Sequence[Interval | None]) -> Column:
    return Column("Routing accuracy, %", 1, means)


def _blank(report: RoutingReport) -> list[None]:
    """No accuracy in the rows of what was not routed."""
    return [None] * (len(report.evaluations) - 1)
