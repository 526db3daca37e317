"""How often a router is right, and what it costs."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from corsa_plugins.bench.evaluation import Interval, bootstrap_mean
from corsa_plugins.errors import SettingError

__all__ = ["routing_accuracy", "routing_share_of_gap"]


def routing_accuracy(chosen: Sequence[int], true: Sequence[int], unit: Sequence[Hashable] | None = None) -> Interval:
    """Share of questions sent to the right adapter, with its 95 % bootstrap interval.

    Args:
        chosen: The adapter of each question.
        true: The right one.
        unit: What each question is about. Questions about one thing stand and fall together: their mean is then one
            value of the interval, and the share is the mean over things. By default each question stands for itself.

    Raises:
        SettingError: There are no questions, or not as many of one as of the other.
    """
    if not chosen or len(chosen) != len(true) or (unit is not None and len(unit) != len(true)):
        raise SettingError(f"{len(chosen)} routes for {len(true)} questions: give one for each, and at least one")
    right: dict[Hashable, list[float]] = {}
    for index, (adapter, right_adapter) in enumerate(zip(chosen, true, strict=True)):
        right.setdefault(index if unit is None else unit[index], []).append(float(adapter == right_adapter))
    return bootstrap_mean([sum(values) / len(values) for values in right.values()])


def routing_share_of_gap(single: float, true: float, routed: float) -> float | None:
    """Which share of what several adapters lose to a single one is lost by routing (CoRSA paper, B.2: 94.61 %).

    Args:
        single: A metric's mean with one adapter for all requests, the upper bound.
        true: With several adapters and the true choice.
        routed: With several adapters and the router's choice.

    Returns:
        (true - routed) / (single - routed); ``None`` if nothing is lost.
    """
    return (true - routed) / (single - routed) if single > routed else None
