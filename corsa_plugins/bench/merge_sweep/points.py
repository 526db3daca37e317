"""The points of a sweep over weight and density of a merge: which there are, what each keeps, and the best of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from corsa_plugins.errors import CorsaError, SettingError
from corsa_plugins.merging.ranges import check_density, check_weight

__all__ = ["SweepError", "SweepGrid", "SweepPoint", "best_point", "default_metric"]


class SweepError(CorsaError, ValueError):
    """A file of results that belongs to another sweep or to none, or models that cannot be swept over."""


@dataclass(frozen=True)
class SweepPoint:
    """One point of the grid.

    Attributes:
        weight: What the delta was scaled by.
        density: Share of the delta that was kept.
        metrics: Means by name, of the metrics that models are compared by, as far as they were measured.
        retained: Of the untouched facts that the base answers right, the share still answered right.
        right: For each untouched fact, whether it is answered right.
    """

    weight: float
    density: float
    metrics: dict[str, float]
    retained: float
    right: tuple[bool, ...]


@dataclass(frozen=True)
class SweepGrid:
    """The merges to try: every weight with every density.

    Attributes:
        weights: Scales of the delta.
        densities: Shares of the delta to keep.
        per_row: See :func:`corsa_plugins.merging.deltas.merge_deltas`.
        prune_vectors: Likewise.

    Raises:
        SettingError: A weight is not finite, or a density outside [0, 1].
    """

    weights: Sequence[float]
    densities: Sequence[float]
    per_row: bool = False
    prune_vectors: bool = True

    def __post_init__(self) -> None:
        for weight in self.weights:
            check_weight(weight)
        for density in self.densities:
            check_density(density)

    def pairs(self) -> list[tuple[float, float]]:
        """Weight and density of each point, each pair once, with the base (0, 0) and the edited model (1, 1)."""
        tried = [(weight, density) for density in self.densities for weight in self.weights]
        return list(dict.fromkeys([(0.0, 0.0), *tried, (1.0, 1.0)]))


def default_metric(points: Sequence[SweepPoint]) -> str:
    """What a sweep is read by: generality where the requests have paraphrases, else efficacy."""
    return "generality" if all("generality" in point.metrics for point in points) else "efficacy"


def best_point(points: Sequence[SweepPoint], floor: float, metric: str | None = None) -> SweepPoint | None:
    """The point with the most of ``metric`` among those that retain at least ``floor`` of the untouched facts.

    Of equal points the one that retains more is chosen, then the one that changes less.

    Args:
        points: Of a sweep.
        floor: Share of the base's right answers to keep, in [0, 1].
        metric: By default generality where the requests have paraphrases, else efficacy.

    Returns:
        The point, or ``None`` if no merge at all (of a weight and density other than 0) meets the floor.

    Raises:
        SettingError: The floor is outside [0, 1], or the points do not have the metric.
    """
    if not 0 <= floor <= 1:
        raise SettingError(f"floor is {floor}: it must lie between 0 and 1, for instance 0.99")
    metric = metric or default_metric(points)
    if any(metric not in point.metrics for point in points):
        raise SettingError(f"metric is {metric!r}: this sweep measured {', '.join(points[0].metrics)}")
    meeting = [point for point in points if point.weight and point.density and point.retained >= floor]
    return max(
        meeting,
        key=lambda p: (p.metrics[metric], p.metrics["efficacy"], p.retained, -abs(p.weight), -p.density),
        default=None,
    )
