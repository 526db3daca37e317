"""Intervals over seeds are Student's."""

from __future__ import annotations

import math
import statistics

import pytest

from benchmarks.intervals import mean_and_half_width, shown


@pytest.mark.parametrize(("n", "quantile"), [(2, 12.706), (3, 4.303), (10, 2.262), (31, 2.042)])  # of any table
def test_the_half_width_is_students(n: int, quantile: float) -> None:
    values = [float(value) for value in range(n)]
    mean, half = mean_and_half_width(values)
    assert mean == (n - 1) / 2
    assert half == pytest.approx(quantile * statistics.stdev(values) / math.sqrt(n), rel=2e-4)


def test_a_single_value_has_no_interval() -> None:
    assert mean_and_half_width([2.0]) == (2.0, None)
    assert shown([0.5], 100) == "50.0"
    assert shown([0.4, 0.5, 0.6], 100) == "50.0 ± 24.8"
