"""A mean with its interval, as a cell of a table."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from corsa_plugins.bench.evaluation import Interval

__all__ = ["IntervalCell", "interval_cell"]

MARK_WIDTH, MARK_MARGIN = 76, 4


@dataclass(frozen=True)
class IntervalCell:
    """What is written, and where the marks of the small scale beside it are.

    Attributes:
        mean, low, high: As text.
        marks: Of the mean and of the interval's ends on the scale; ``None``: there is no scale.
        of: What it is a share of, where that is not said elsewhere.
    """

    mean: str
    low: str
    high: str
    marks: tuple[float, float, float] | None = None
    of: str = ""

    @property
    def title(self) -> str:
        """Says what the scale shows, for those who do not see it."""
        return f"{self.mean}, from {self.low} to {self.high}"


def interval_cell(interval: Interval | None, percent: bool, *, is_change: bool = False) -> IntervalCell | None:
    """A cell; shares have a small scale from 0 to 1, changes a sign."""
    if interval is None:
        return None
    values = interval[:3]
    scale, digits, sign = 100 if percent else 1, 1 if percent else 2, "+" if is_change else ""
    mean, low, high = (f"{scale * value:{sign}.{digits}f}" for value in values)
    has_scale = percent and not is_change and all(map(isfinite, values))
    return IntervalCell(mean, low, high, tuple(map(_place, values)) if has_scale else None)  # type: ignore[arg-type]


def _place(share: float) -> float:
    return round(MARK_MARGIN + (MARK_WIDTH - 2 * MARK_MARGIN) * min(1.0, max(0.0, share)), 1)
