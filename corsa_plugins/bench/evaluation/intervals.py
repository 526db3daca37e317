"""A mean with its interval, from as many values as there are requests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Interval", "bootstrap_mean", "mean"]


class Interval(NamedTuple):
    """A mean with a bootstrap interval.

    Attributes:
        mean: The sample mean.
        low: Lower end of the interval.
        high: Upper end of the interval.
        n: Number of values (requests or probes) it is the mean of.
    """

    mean: float
    low: float
    high: float
    n: int


def mean(values: Sequence[float]) -> float | None:
    """The arithmetic mean (1/n) sum of x_i, or ``None`` of nothing."""
    return math.fsum(values) / len(values) if len(values) else None


def bootstrap_mean(
    values: Sequence[float], *, confidence: float = 0.95, n_resamples: int = 2000, seed: int = 0
) -> Interval:
    """Mean of ``values`` with its percentile bootstrap interval (Efron, 1979).

    Of ``n_resamples`` samples of the same size, drawn from the values with replacement, the means are taken; the
    interval reaches from their (1 - confidence)/2 to their (1 + confidence)/2 quantile. The values are resampled as
    they come, so one value should be one independent unit: here a request, with the mean over its paraphrases as the
    value, since the paraphrases of one request stand and fall together.

    Args:
        values: At least one number.
        confidence: Share of resampled means inside the interval.
        n_resamples: Number of resamples.
        seed: Of the resampling; the same values give the same interval.

    Raises:
        ValueError: There are no values.
    """
    sample = np.asarray(values, dtype=np.float64)
    if not sample.size:
        raise ValueError("the mean of no values: give at least one")
    generator = np.random.default_rng(seed)
    unique, counts = np.unique(sample, return_counts=True)
    if unique.size <= max(2, sample.size // 8):
        # Shares take few values: how often each is drawn is multinomial, and no draw need be made by itself.
        means = generator.multinomial(sample.size, counts / sample.size, size=n_resamples) @ unique / sample.size
    else:
        means = _resampled_means(sample, n_resamples, generator)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(math.fsum(sample) / sample.size, float(low), float(high), int(sample.size))


def _resampled_means(sample: np.ndarray, n_resamples: int, generator: np.random.Generator) -> np.ndarray:
    rows_at_once = max(1, 2_000_000 // sample.size)  # bounds the scratch memory to 32 MB
    return np.concatenate(
        [
            sample[generator.integers(sample.size, size=(min(rows_at_once, n_resamples - done), sample.size))].mean(1)
            for done in range(0, n_resamples, rows_at_once)
        ]
    )
