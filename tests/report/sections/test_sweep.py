"""A panel for each sweep."""

from __future__ import annotations

import re

from corsa_plugins.report.sections.sweep import SweepRow, sweep_figures


def test_each_sweep_has_a_panel_and_its_base_is_no_density() -> None:
    rows = [
        SweepRow(weight, density, weight * density, 1 - weight * density, weight == density == 1, run)
        for run in ("one", "two")
        for weight, density in ((0, 0), (0.5, 0.2), (1, 0.2), (1, 1))
    ]
    drawn = sweep_figures(rows)
    assert [figure.heading for figure in drawn] == ["one", "two"]
    for figure in drawn:
        labels = re.findall(r'class="label"[^>]*>([^<]+)<', figure.chart)
        assert sorted(labels) == ["base", "best: 1, 1", "density 0.2", "density 1"]
        assert len(figure.rows) == 4
