"""Scores of general ability, by lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corsa_plugins.bench.ability import Ability, ability_change, is_stderr, load_ability, read_ability, stderr_of
from corsa_plugins.bench.evaluation.storage import is_evaluation
from corsa_plugins.bench.measure import HARNESS
from corsa_plugins.bench.protocols.comparison import ABILITY as CHANGES
from corsa_plugins.report.kinds import File, Kind, all_have, has
from corsa_plugins.report.render import render
from corsa_plugins.report.sections.section import Section

__all__ = ["ABILITY", "HarnessScore", "harness_scores"]


@dataclass(frozen=True)
class HarnessScore:
    """One score of lm-evaluation-harness.

    Attributes:
        task: For instance ``"mmlu"``.
        metric: For instance ``"acc"``.
        value: As the harness gives it.
        stderr: Its standard error, where there is one.
        label: Of which model.
        baseline: The label of the model to compare it with, where there is one.
    """

    task: str
    metric: str
    value: float
    stderr: float | None = None
    label: str = "model"
    baseline: str | None = None

    @classmethod
    def of(cls, ability: Ability, label: str, baseline: str | None = None) -> list[HarnessScore]:
        """All scores of one model."""
        return [
            cls(task, metric, value, scores.get(stderr_of(metric)), label, baseline)
            for task, scores in ability.items()
            for metric, value in scores.items()
            if not is_stderr(metric)
        ]


def harness_scores(saved: Mapping[str, Any], label: str, beside: Sequence[HarnessScore] = ()) -> list[HarnessScore]:
    """Scores from the entry ``general_ability`` of a summary, those of its baseline first.

    Args:
        saved: What :func:`corsa_plugins.bench.ability.ability_summary` made.
        label: Of the model.
        beside: Scores that will stand beside these: other scores get another label, the same are not repeated.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: The entry is something else.
    """
    base_scores: list[HarnessScore] = []
    baseline = None
    if "baseline_scores" in saved:
        base = read_ability(saved["baseline_scores"])
        baseline = _free_label(str(saved["baseline"]), base, beside)
        base_scores = HarnessScore.of(base, baseline)
    scores = read_ability(saved["scores"])
    own = _free_label(label, scores, [*beside, *base_scores], other_than=baseline)
    return base_scores + HarnessScore.of(scores, own, baseline)


def _free_label(label: str, scores: Ability, beside: Sequence[HarnessScore], other_than: str | None = None) -> str:
    """A label under which no other scores stand."""
    wanted = {(score.task, score.metric): score.value for score in HarnessScore.of(scores, label)}
    name, number = label, 1
    while True:
        there = {(score.task, score.metric): score.value for score in beside if score.label == name}
        if name != other_than and (not there or there == wanted):
            return name
        number += 1
        name = f"{label} ({number})"


@dataclass(frozen=True)
class _Cell:
    value: str
    stderr: float | None = None


@dataclass(frozen=True)
class _Table:
    """Scores by task and metric: a column for each model, and one for the difference to its baseline."""

    scores: Sequence[HarnessScore]

    @property
    def baselines(self) -> dict[str, str | None]:
        """Of each model, where it is on the page too."""
        named: dict[str, str | None] = {}
        for score in self.scores:
            named[score.label] = named.get(score.label) or score.baseline
        return {label: baseline if baseline in named else None for label, baseline in named.items()}

    @property
    def headings(self) -> list[str]:
        return [
            heading
            for label, baseline in self.baselines.items()
            for heading in (label, *(["difference"] if baseline is not None else []))
        ]

    @property
    def compared(self) -> list[str]:
        """The baselines, each once."""
        return list(dict.fromkeys(baseline for baseline in self.baselines.values() if baseline is not None))

    @property
    def rows(self) -> list[tuple[str, list[_Cell]]]:
        lines = dict.fromkeys((score.task, score.metric) for score in self.scores)
        return [(f"{task}, {metric}", self._cells(task, metric)) for task, metric in lines]

    def _cells(self, task: str, metric: str) -> list[_Cell]:
        by_label = {score.label: score for score in self.scores if (score.task, score.metric) == (task, metric)}
        cells = []
        for label, baseline in self.baselines.items():
            score, base = by_label.get(label), by_label.get(baseline or "")
            cells.append(_Cell(f"{score.value:.4f}", score.stderr) if score else _Cell(""))
            if baseline is not None and score and base:
                change = ability_change(base.value, score.value, base.stderr, score.stderr)
                cells.append(_Cell(f"{change.difference:+.4f}", change.stderr))
            elif baseline is not None:
                cells.append(_Cell(""))
        return cells


def _read_kept(file: File) -> tuple[list[HarnessScore], str]:
    scores = load_ability(file.path)
    return harness_scores({"scores": scores}, file.label, file.beside), ", ".join(scores)


def _read_changes(file: File) -> tuple[list[HarnessScore], str]:
    """Before and after a protocol: there are standard errors of the differences alone, and so none are shown."""
    before, after = (
        {
            task: {metric: float(change[moment]) for metric, change in metrics.items()}
            for task, metrics in file.data.items()
        }
        for moment in ("before", "after")
    )
    saved = {"scores": after, "baseline": f"{file.label}, before", "baseline_scores": before}
    return harness_scores(saved, f"{file.label}, after", file.beside), ", ".join(file.data)


def _is_changes(data: Any) -> bool:
    changes = [change for metrics in _values(data) for change in _values(metrics)]
    return bool(changes) and all(has("before", "after", "difference")(change) for change in changes)


def _values(data: Any) -> list[Any]:
    return list(data.values()) if isinstance(data, Mapping) else []


def _is_kept_scores(data: Any) -> bool:
    return has("model", "asked")(data) and all_have("task", "settings", "scores")(data["asked"])


def _without_summary(name: str) -> Any:
    """A file of this name, where the folder has no summary that the scores are in."""

    def find(folder: Path) -> list[Path]:
        path = folder / name
        return [path] if path.is_file() and not is_evaluation(folder) else []

    return find


ABILITY = Section(
    name="harness",
    title="General ability",
    render=lambda scores: render("ability.html", table=_Table(scores)),
    kinds=(
        Kind(
            name="scores of lm-evaluation-harness",
            fits=_is_kept_scores,
            read=_read_kept,
            find=_without_summary(HARNESS),
            said=f"scores that corsa evaluate --harness keeps ({HARNESS})",
        ),
        Kind(
            name="general ability before and after a protocol",
            fits=_is_changes,
            read=_read_changes,
            find=_without_summary(CHANGES),
        ),
    ),
)
