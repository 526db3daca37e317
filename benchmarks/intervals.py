"""A mean over seeds with its 95 % interval, as the tables show it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

__all__ = ["mean_and_half_width", "shown"]

# Student's t, 97.5 %, by degrees of freedom: the half-width of a 95 % interval over seeds.
_T = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def mean_and_half_width(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and the half-width of its interval; ``None`` for a single value."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return mean, None
    return mean, _T.get(len(values) - 1, 1.96) * statistics.stdev(values) / math.sqrt(len(values))


def shown(values: Sequence[float], scale: float = 1.0) -> str:
    """``mean ± half-width`` with one decimal, both times ``scale``."""
    mean, half = mean_and_half_width(values)
    return f"{scale * mean:.1f}" if half is None else f"{scale * mean:.1f} ± {scale * half:.1f}"
