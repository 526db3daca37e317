"""During training: log-probabilities and margins over the steps (CoRSA paper, Figure 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from corsa_plugins.methods.history import is_look
from corsa_plugins.report.charts import Series, line_chart
from corsa_plugins.report.kinds import File, Kind, SourceError, has, updates_of
from corsa_plugins.report.sections.figures import Figure, figures, grouped
from corsa_plugins.report.sections.section import Section

__all__ = ["HISTORY", "HistoryPoint", "history_figures", "history_points"]


@dataclass(frozen=True)
class HistoryPoint:
    """Means over the requests at one step of training.

    Attributes:
        step: Of the optimiser.
        log_prob_new: Mean log p(target_new | prompt), nats.
        log_prob_old: The same of target_old.
        margin: Mean margin, nats; by default the difference of the two.
        run: Which run, for instance the method; each is a panel of its own.
    """

    step: float
    log_prob_new: float
    log_prob_old: float | None = None
    margin: float | None = None
    run: str = ""

    @property
    def gap(self) -> float | None:
        """The margin, or the difference of the two log-probabilities."""
        if self.margin is not None or self.log_prob_old is None:
            return self.margin
        return self.log_prob_new - self.log_prob_old


def history_points(log_history: Sequence[Mapping[str, Any]], run: str = "") -> list[HistoryPoint]:
    """The points of a trainer's ``state.log_history``, or of a ``history.json``.

    Where it has looks (:mod:`corsa_plugins.methods.history`), they are taken: the prompts that were edited are the run
    ``run``, and others get a run of their own, named after ``run`` and what is different. Else entries with ``step``
    and ``logps/new`` are, with ``logps/old`` and ``margin`` where they have them: means over the batches since the
    last entry, not over all requests. Other entries are left out.
    """
    looks = [entry for entry in log_history if is_look(entry)]
    points = []
    for part, prompts in _PARTS.items() if looks else (("", ""),):
        for entry in looks or log_history:
            if "step" in entry and f"{part}logps/new" in entry:
                own = ", ".join(name for name in (run, entry.get("stage", ""), prompts) if name)
                old, margin = entry.get(f"{part}logps/old"), entry.get(f"{part}margin")
                points.append(HistoryPoint(entry["step"], entry[f"{part}logps/new"], old, margin, own))
    return points


_PARTS = {"history/edit/": "", "history/validation/": "other wordings"}


def history_figures(history: Sequence[HistoryPoint]) -> list[Figure]:
    """A panel for each run: log p of the new and of the old answer, and the margin, over the steps; on one scale."""
    values = (value for point in history for value in (point.log_prob_new, point.log_prob_old, point.gap))
    known = [value for value in values if value is not None and isfinite(value)]
    span = (min(known), max(known)) if known else ()
    return [_panel(run, points, span) for run, points in grouped(history, "run").items()]


def _panel(run: str, points: Sequence[HistoryPoint], span: Sequence[float]) -> Figure:
    points = sorted(points, key=lambda point: point.step)
    old = [(point.step, point.log_prob_old) for point in points if point.log_prob_old is not None]
    gaps = [(point.step, point.gap) for point in points if point.gap is not None]
    series = [Series("log p(new)", [(point.step, point.log_prob_new) for point in points])]
    series += [Series("log p(old)", old)] if old else []
    series += [Series("margin", gaps)] if gaps else []
    return Figure(
        run,
        line_chart(
            series,
            title=f"Log-probabilities and margin over training{f', {run}' if run else ''}",
            x_label="optimiser step",
            y_label="nats, mean of requests",
            span=span,
        ),
        "Log-probabilities of the new and the old answer, and their difference, the margin.",
        ("step", "log p(new)", "log p(old)", "margin"),
        [(point.step, point.log_prob_new, point.log_prob_old, point.gap) for point in points],
    )


def _read(file: File) -> tuple[list[HistoryPoint], str]:
    log = file.data["log_history"] if isinstance(file.data, Mapping) else file.data
    points = history_points(log, file.label)
    for point in points:
        for value in (point.step, point.log_prob_new, point.log_prob_old, point.margin):
            if not isinstance(value, float | int | None):
                raise TypeError(f"{value!r} is no number")
        if point.step is None or point.log_prob_new is None:
            raise TypeError("null is no number")
    if not points:
        raise SourceError(
            f"{file.path} has no log-probabilities of new answers: train with corsa train, best with its "
            "--history_looks, or by corsa protocol"
        )
    return points, f"{len(points)} points of {file.label}"


def _is_log(data: Any) -> bool:
    return isinstance(data, list) and all(isinstance(row, Mapping) for row in data) and any("step" in r for r in data)


def _last_checkpoint(folder: Path) -> list[Path]:
    """The state in the last of a trainer's checkpoints, where the folder has none of its own."""
    if (folder / "trainer_state.json").is_file():
        return []
    states = {path.parent.name.partition("-")[2]: path for path in folder.glob("checkpoint-*/trainer_state.json")}
    return [path for _, path in sorted((int(step), path) for step, path in states.items() if step.isdigit())[-1:]]


_SAID = "a training history (trainer_state.json of a trainer that logs log-probabilities of answers, or history.json)"

HISTORY = Section(
    name="history",
    title="During training",
    render=lambda points: figures(history_figures(points)),
    kinds=(
        Kind(
            name="a trainer's state",
            fits=has("log_history"),
            read=_read,
            names=("trainer_state.json",),
            find=_last_checkpoint,
            said=_SAID,
        ),
        Kind(
            name="a training history",
            fits=_is_log,
            read=_read,
            names=("history.json",),
            find=updates_of("history.json"),
            said=_SAID,
        ),
    ),
)
