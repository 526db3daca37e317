"""Edits kept against facts retained over scale and density (model merging paper, Figures 2 and 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from corsa_plugins.bench.merge_sweep import default_metric, read_sweep
from corsa_plugins.parsing import yaml_value
from corsa_plugins.report.charts import Series, line_chart
from corsa_plugins.report.kinds import File, Kind, SourceError, first_has
from corsa_plugins.report.sections.figures import Figure, figures, grouped
from corsa_plugins.report.sections.section import Section

__all__ = ["SWEEP", "SweepRow", "sweep_figures"]


@dataclass(frozen=True)
class SweepRow:
    """One point of a sweep over the scale and the density of a weight delta.

    Attributes:
        weight: What the delta was scaled by.
        density: Share of it that was kept.
        edits_kept: Efficacy or generality, in [0, 1].
        retained: Share of what the base knew that is still right, in [0, 1].
        best: Whether this is the point chosen.
        run: Which sweep; each is a panel of its own.
    """

    weight: float
    density: float
    edits_kept: float
    retained: float
    best: bool = False
    run: str = ""

    @property
    def percent(self) -> tuple[float, float]:
        """Where it is drawn: retained and edits kept."""
        return 100 * self.retained, 100 * self.edits_kept


def sweep_figures(sweep: Sequence[SweepRow]) -> list[Figure]:
    """Edits kept against knowledge retained, a line for each density, along growing weight; a panel for each sweep."""
    return [_panel(run, rows) for run, rows in grouped(sweep, "run").items()]


def _panel(run: str, sweep: Sequence[SweepRow]) -> Figure:
    best = [row for row in sweep if row.best]
    chart = line_chart(
        _series(sweep, best),
        title=f"Edits kept against knowledge retained{f', {run}' if run else ''}",
        x_label="retained, %",
        y_label="edits kept, %",
        span=(0.0, 100.0),
    )
    caption = "Each line is a density; the weight grows along it, and its label is at the largest weight. "
    if best:
        caption += f"The star is the best merge: weight {best[-1].weight:g}, density {best[-1].density:g}. "
    return Figure(
        run,
        chart,
        caption + "The upper right corner is where all edits and all knowledge are.",
        ("weight", "density", "edits kept, %", "retained, %", ""),
        [
            (row.weight, row.density, 100 * row.edits_kept, 100 * row.retained, "best" if row.best else "")
            for row in sweep
        ],
    )


def _series(sweep: Sequence[SweepRow], best: Sequence[SweepRow]) -> list[Series]:
    base = [row for row in sweep if not (row.weight and row.density)]
    merges = [row for row in sweep if row.weight and row.density]
    series = []
    for density, rows in sorted(grouped(merges, "density").items()):
        rows = sorted(rows, key=lambda row: row.weight)
        notes = [f"weight {row.weight:g}, density {row.density:g}" for row in rows]
        series.append(Series(f"density {density:g}", [row.percent for row in rows], notes=notes))
    if base:
        series.append(Series("base", [row.percent for row in base], joined=False))
    if best:
        label = f"best: {best[-1].weight:g}, {best[-1].density:g}"
        series.append(Series(label, [row.percent for row in best], joined=False, star=True))
    return series


def _read(file: File) -> tuple[list[SweepRow], str]:
    _, points = read_sweep(file.path)
    if not points:
        raise SourceError(f"{file.path} has no points yet: finish the sweep first")
    metric, best = default_metric(points), _best(file.path.parent / "best.yaml")
    rows = [
        SweepRow(
            point.weight,
            point.density,
            point.metrics[metric],
            point.retained,
            best=(point.weight, point.density) == best,
            run=f"{file.label}: {metric}",
        )
        for point in points
    ]
    return rows, f"{len(points)} points; edits kept is {metric}"


def _best(recipe: Path) -> tuple[float, float] | None:
    """Weight and density of the recipe that ``corsa merge-sweep`` wrote beside its results."""
    if not recipe.is_file():
        return None
    try:
        chosen = yaml_value(recipe.read_text(encoding="utf-8"))["models"][0]["parameters"]
        return float(chosen["weight"]), float(chosen["density"])
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise SourceError(f"{recipe} is not the recipe of a merge that corsa merge-sweep wrote: {error!r}") from error


SWEEP = Section(
    name="sweep",
    title="Scale and density",
    render=lambda rows: figures(sweep_figures(rows)),
    kinds=(
        Kind(
            name="results of corsa merge-sweep",
            fits=first_has("sweep"),
            read=_read,
            names=("sweep.jsonl",),
            said="results of corsa merge-sweep (sweep.jsonl)",
        ),
    ),
)
