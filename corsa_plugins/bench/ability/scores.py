"""Scores of general ability, what changed in them, and both as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from corsa_plugins.errors import SettingError

__all__ = [
    "Ability",
    "AbilityChange",
    "ability_change",
    "ability_summary",
    "compare_ability",
    "is_stderr",
    "plain_ability",
    "read_ability",
    "stderr_of",
]

Ability = Mapping[str, Mapping[str, float]]
"""By task, by metric. A metric is named as the harness does without its filter ``none`` (``"acc"``,
``"exact_match,strict-match"``); beside it, its standard error as ``"acc_stderr"`` where the harness has one."""

_STDERR = "_stderr"


@dataclass(frozen=True)
class AbilityChange:
    """One metric of one task, before and after.

    Attributes:
        before: Before the edit.
        after: After it.
        difference: After minus before.
        stderr: Standard error of the difference as if the two had been asked different questions; as they are asked the
            same ones, it is an upper bound in practice. ``None`` where the harness gives no standard errors.
    """

    before: float
    after: float
    difference: float
    stderr: float | None


def compare_ability(before: Ability, after: Ability) -> dict[str, dict[str, AbilityChange]]:
    """What changed in each metric of each task.

    Raises:
        SettingError: The two are not of the same tasks and metrics.
    """
    tasks = [task for task in {**before, **after} if before.get(task, {}).keys() != after.get(task, {}).keys()]
    if tasks:
        raise SettingError(f"general ability before and after is not of the same metrics: {', '.join(tasks)} differ")
    return {
        task: {
            metric: ability_change(
                before[task][metric],
                after[task][metric],
                before[task].get(stderr_of(metric)),
                after[task].get(stderr_of(metric)),
            )
            for metric in before[task]
            if not is_stderr(metric)
        }
        for task in before
    }


def ability_change(
    before: float, after: float, before_stderr: float | None, after_stderr: float | None
) -> AbilityChange:
    """The difference of two scores; its standard error is the root of the sum of the squares of theirs."""
    known = before_stderr is not None and after_stderr is not None
    stderr = math.hypot(before_stderr, after_stderr) if known else None  # type: ignore[arg-type]
    return AbilityChange(before, after, after - before, stderr)


def ability_summary(after: Ability, before: Ability | None = None, baseline: str | None = None) -> dict[str, Any]:
    """What a summary says of general ability, as plain data for strict JSON.

    Args:
        after: The scores reported on, under ``scores``.
        before: What to compare them with, under ``baseline_scores``; ``change`` has every difference.
        baseline: What is compared with, in words.
    """
    summary: dict[str, Any] = {"scores": plain_ability(after)}
    if before is not None:
        changes = {
            task: plain_ability({metric: _without_none(asdict(change)) for metric, change in metrics.items()})
            for task, metrics in compare_ability(before, after).items()
        }
        summary |= {"baseline": baseline, "baseline_scores": plain_ability(before), "change": changes}
    return summary


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def plain_ability(ability: Ability) -> dict[str, dict[str, Any]]:
    """Plain data for strict JSON: a score that is no finite number is written as text."""
    return {
        task: {name: value if math.isfinite(value) else str(value) for name, value in scores.items()}
        for task, scores in ability.items()
    }


def read_ability(data: Any) -> dict[str, dict[str, float]]:
    """The scores of :func:`plain_ability`'s data.

    Raises:
        ValueError, TypeError, AttributeError: The data are something else.
    """
    return {task: {name: float(value) for name, value in scores.items()} for task, scores in data.items()}


def stderr_of(metric: str) -> str:
    """Under which name the standard error of a metric is."""
    name, comma, rest = metric.partition(",")
    return f"{name}{_STDERR}{comma}{rest}"


def is_stderr(metric: str) -> bool:
    """Whether this is the name of a standard error."""
    return metric.partition(",")[0].endswith(_STDERR)
