"""A sweep as a table, as the trade-off plot, and as a recipe of its best point."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from corsa_plugins.errors import require
from corsa_plugins.report.sweeps import SweepPoint, default_metric
from mergekit_ext.names import METHOD

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["point_recipe", "sweep_plot", "sweep_table"]

_TITLES = {
    "efficacy": "Efficacy",
    "generality": "Generality",
    "old_retention": "Old answers",
    "specificity": "Specificity",
    "portability": "Portability",
    "untouched": "Untouched",
}


def sweep_table(points: Sequence[SweepPoint], best: SweepPoint | None = None, floor: float | None = None) -> Table:
    """A row per point: base first, the edited model last, the best marked with a star. Shares in percent."""
    from rich.table import Table

    title = f"{len(points)} points" + ("" if floor is None else f"; * best that retains {100 * floor:g} %")
    table = Table(title=title)
    names = [name for name in _TITLES if all(name in point.metrics for point in points)]
    for heading in ("", "weight", "density", *(_TITLES[name] for name in names), "Retained"):
        table.add_column(heading, justify="right")
    for point in sorted(points, key=lambda point: (point.density, point.weight)):
        kind = "base" if not (point.weight and point.density) else "*" if point == best else ""
        kind = kind or ("edited" if point.weight == point.density == 1 else "")
        shares = [*(point.metrics[name] for name in names), point.retained]
        table.add_row(kind, f"{point.weight:g}", f"{point.density:g}", *(f"{100 * share:.1f}" for share in shares))
    return table


def sweep_plot(
    points: Sequence[SweepPoint],
    path: str | os.PathLike[str],
    best: SweepPoint | None = None,
    floor: float | None = None,
) -> Path:
    """Draw edits kept against facts retained (the paper's Figures 2 and 3) into an image file.

    Left, over the weight at the best point's density; in the middle, over the density at its weight; right, the one
    against the other for all points.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("matplotlib", "eval", what="the trade-off plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    merges = [point for point in points if point.weight and point.density]
    centre = best or max(merges, key=lambda point: point.retained)
    metric = default_metric(points)
    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    over_weight, over_density, trade = figure.subplots(1, 3)
    lines = [
        (over_weight, "weight", [p for p in merges if p.density == centre.density], f"density {centre.density:g}"),
        (over_density, "density", [p for p in merges if p.weight == centre.weight], f"weight {centre.weight:g}"),
    ]
    for axes, name, chosen, title in lines:
        chosen = sorted(chosen, key=lambda point: getattr(point, name))
        places = [getattr(point, name) for point in chosen]
        for key in dict.fromkeys(("efficacy", metric)):
            axes.plot(places, [100 * p.metrics[key] for p in chosen], "o-", label=_TITLES[key])
        axes.plot(places, [100 * p.retained for p in chosen], "s--", label="Retained")
        axes.set(xlabel=name, ylabel="%", ylim=(-3, 103), title=title)
        axes.legend()
    shown = trade.scatter(
        [100 * p.retained for p in merges],
        [100 * p.metrics[metric] for p in merges],
        c=[p.weight for p in merges],
        s=[30 + 120 * p.density for p in merges],
    )
    if best:
        trade.plot(100 * best.retained, 100 * best.metrics[metric], "r*", markersize=16, label="best")
    if floor is not None:
        trade.axvline(100 * floor, linestyle=":", color="grey", label=f"floor {100 * floor:g} %")
    if best or floor is not None:
        trade.legend()
    trade.set(xlabel="Retained, %", ylabel=f"{_TITLES[metric]}, %", ylim=(-3, 103), title="size: density")
    figure.colorbar(shown, ax=trade, label="weight")
    figure.savefig(path, dpi=150)
    return Path(path)


def point_recipe(point: SweepPoint, base: str, edited: str, *, per_row: bool, prune_vectors: bool) -> str:
    """The mergekit recipe of a point, for ``corsa merge``."""
    import yaml

    shared = ({"per_row": True} if per_row else {}) | ({} if prune_vectors else {"prune_vectors": False})
    recipe = {
        "merge_method": METHOD,
        "base_model": base,
        "models": [{"model": edited, "parameters": {"weight": point.weight, "density": point.density}}],
        **({"parameters": shared} if shared else {}),
    }
    return yaml.safe_dump(recipe, sort_keys=False)
