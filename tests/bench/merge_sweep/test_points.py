"""The points of a sweep: the grid, the best under a floor, and the table that marks it."""

from __future__ import annotations

import pytest

from corsa_plugins.bench.merge_sweep import SweepGrid, best_point, sweep_table
from corsa_plugins.errors import CorsaError
from tests.support.merges import POINTS


class TestGrid:
    def test_the_base_is_first_the_edited_model_among_them_and_each_pair_there_once(self):
        pairs = SweepGrid((1, 0.5), (0.2, 1, 0.2)).pairs()
        assert pairs[0] == (0, 0)
        assert sorted(pairs) == [(0, 0), (0.5, 0.2), (0.5, 1), (1, 0.2), (1, 1)]
        assert SweepGrid((0.5,), (0.2,)).pairs() == [(0, 0), (0.5, 0.2), (1, 1)]

    def test_what_is_out_of_range(self):
        with pytest.raises(CorsaError, match="weight is nan"):
            SweepGrid((0.5, float("nan")), (0.2,))
        with pytest.raises(CorsaError, match="density is 2"):
            SweepGrid((0.5,), (0.2, 2))


class TestBest:
    @pytest.mark.parametrize(("floor", "weight"), [(0.99, 0.4), (0.95, 0.8), (0.0, 1), (0.96, 0.4)])
    def test_the_most_that_meets_the_floor_and_of_equals_the_smaller_change(self, floor, weight):
        assert best_point(POINTS, floor).weight == weight

    def test_the_base_is_no_merge(self):
        assert best_point(POINTS, 1.0) is None

    def test_what_cannot_be_asked(self):
        with pytest.raises(CorsaError, match=r"floor is 1\.5"):
            best_point(POINTS, 1.5)
        with pytest.raises(CorsaError, match="metric is 'fluency'"):
            best_point(POINTS, 0.5, "fluency")

    def test_the_table_marks_it(self):
        from rich.console import Console

        best = best_point(POINTS, 0.95)
        console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(sweep_table(POINTS, best, 0.95))
        rows = [line.strip("\u2502 ").split() for line in console.export_text().splitlines()]
        (row,) = [cells for cells in rows if cells[:1] == ["*"] and len(cells) > 8]
        assert [cell for cell in row if cell != "\u2502"] == ["*", "0.8", "0.2", "90.0", "95.0"]
