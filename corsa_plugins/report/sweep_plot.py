"""The trade-off of a sweep over weights and densities, as a plot."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from corsa_plugins.bench.evaluation import METRICS
from corsa_plugins.bench.merge_sweep import SweepPoint, default_metric
from corsa_plugins.drawing import new_figure, write_figure

__all__ = ["sweep_plot"]


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
        SettingError: Figures are not written with this ending.
        OSError: The file cannot be written.
    """
    merges = [point for point in points if point.weight and point.density]
    centre = best or max(merges, key=lambda point: point.retained)
    metric = default_metric(points)
    figure = new_figure(13, 4, layout="constrained")
    over_weight, over_density, trade = figure.subplots(1, 3)
    lines = [
        (over_weight, "weight", [p for p in merges if p.density == centre.density], f"density {centre.density:g}"),
        (over_density, "density", [p for p in merges if p.weight == centre.weight], f"weight {centre.weight:g}"),
    ]
    for axes, name, chosen, title in lines:
        chosen = sorted(chosen, key=lambda point: getattr(point, name))
        places = [getattr(point, name) for point in chosen]
        for key in dict.fromkeys(("efficacy", metric)):
            axes.plot(places, [100 * p.metrics[key] for p in chosen], "o-", label=METRICS[key].title)
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
    trade.set(xlabel="Retained, %", ylabel=f"{METRICS[metric].title}, %", ylim=(-3, 103), title="size: density")
    figure.colorbar(shown, ax=trade, label="weight")
    return write_figure(figure, path)
