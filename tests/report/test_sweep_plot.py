"""The trade-off of a sweep as an image."""

from __future__ import annotations

import pytest

from corsa_plugins.bench.merge_sweep import best_point
from corsa_plugins.report.sweep_plot import sweep_plot
from tests.support.merges import POINTS


@pytest.mark.parametrize("floor", [0.95, 1.0])
def test_it_is_drawn_with_and_without_a_best_point(floor, tmp_path):
    best = best_point(POINTS, floor)
    assert (best is None) == (floor == 1.0)
    plot = sweep_plot(POINTS, tmp_path / "plot.png", best, floor)
    assert plot.read_bytes().startswith(b"\x89PNG")
