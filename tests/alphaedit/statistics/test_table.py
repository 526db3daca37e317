"""Statistics as a table: its figures are those of the eigenvalues."""

from __future__ import annotations

import pytest

from corsa_plugins.alphaedit.statistics.table import statistics_table
from tests.fixtures.alphaedit import Bench


def test_a_row_for_each_layer(gpt2_bench: Bench) -> None:
    statistics = gpt2_bench.statistics
    table = statistics_table(statistics)
    assert table.row_count == len(statistics.layers) == 2
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    for row, layer in zip(rows, statistics.layers, strict=True):
        values = statistics.eigenvalues(layer)
        assert row[0] == str(layer)
        assert row[1] == str(statistics.width(layer)) == str(len(values))
        assert row[2] == f"{statistics.count(layer):,}"
        under = values < 0.02
        assert float(row[4]) == pytest.approx(100 * float(under.double().mean()), abs=0.05)
        assert float(row[5]) == pytest.approx(100 * float(values[under].sum() / values.sum()), rel=0.05)
