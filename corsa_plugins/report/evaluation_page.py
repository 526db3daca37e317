"""What a model was measured by, as files and as one page."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from corsa_plugins.bench.ability import ability_summary
from corsa_plugins.bench.evaluation import save_evaluation
from corsa_plugins.bench.measure import BASELINE, UNFINISHED, Measured, Measurement
from corsa_plugins.report.page import Report, versions, write_report
from corsa_plugins.report.sections import ABILITY
from corsa_plugins.report.sections.ability import harness_scores

__all__ = ["save_measurement"]


def save_measurement(
    measurement: Measurement,
    folder: str | os.PathLike[str],
    *,
    asked: Mapping[str, Any],
    later: bool = False,
) -> Path:
    """Write a measurement into a folder, and take away what was kept there while it was made.

    Args:
        measurement: As :func:`~corsa_plugins.bench.measure.measure` gives it.
        folder: It gets ``report.html``, ``records.jsonl``, ``untouched.jsonl`` and ``summary.json``, and in
            ``baseline/`` the same of a baseline that was measured with it.
        asked: What was run; shown on the page as it is.
        later: Whether the baseline is from right after the update, rather than from before it.

    Returns:
        The path of the page.

    Raises:
        OSError: A file cannot be written.
    """
    target, before, after = Path(folder), measurement.before, measurement.after
    if before and not measurement.before_is_saved:
        save_evaluation(before.evaluation, target / BASELINE, further=_ability(measurement, before))
    further = _ability(measurement, after, before)
    earlier = before.evaluation if before else None
    save_evaluation(after.evaluation, target, baseline=earlier, later=later, further=further)
    questions = measurement.questions
    report = Report(
        f"{after.evaluation.label}: {questions.title}",
        [measured.evaluation for measured in measurement.measured] if questions.requests or questions.untouched else [],
        asked={**asked, **(after.evaluation.settings or {}), **versions()},
        parts={
            ABILITY.name: harness_scores(further["general_ability"], after.evaluation.label) if further else [],
        },
        later=later,
    )
    page = write_report(target / "report.html", report)
    for unfinished in (target / UNFINISHED, target / BASELINE / UNFINISHED):
        unfinished.unlink(missing_ok=True)
    return page


def _ability(measurement: Measurement, after: Measured, before: Measured | None = None) -> dict[str, Any]:
    """What the summary says of general ability."""
    harness = measurement.questions.harness
    if harness is None or after.ability is None:
        return {}
    if before and before.ability is not None:
        summary = ability_summary(after.ability, before.ability, before.evaluation.label)
    else:
        summary = ability_summary(after.ability)
    return {"general_ability": {"settings": harness.settings, **summary}}
