"""A mean over seeds with its 95 % interval, as the tables show it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy.stats import t as student_t

__all__ = ["mean_and_half_width", "shown"]


def mean_and_half_width(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and the half-width of its interval by Student's t (scipy, extra ``test``); ``None`` for one value."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return mean, None
    quantile = float(student_t.ppf(0.975, len(values) - 1))
    return mean, quantile * statistics.stdev(values) / math.sqrt(len(values))


def shown(values: Sequence[float], scale: float = 1.0) -> str:
    """``mean ± half-width`` with one decimal, both times ``scale``."""
    mean, half = mean_and_half_width(values)
    return f"{scale * mean:.1f}" if half is None else f"{scale * mean:.1f} ± {scale * half:.1f}"
