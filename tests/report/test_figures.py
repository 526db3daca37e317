"""Figures and tables of a report that set several runs or models side by side."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from corsa_plugins.report.figures import HistoryPoint, SweepRow, history_figures, sweep_figures
from corsa_plugins.report.page import HarnessScore, write_report


def y_ticks(chart: str) -> list[str]:
    return re.findall(r'text-anchor="end">([^<]+)<', chart)


def test_trainings_are_drawn_on_one_scale() -> None:
    steep = [HistoryPoint(step, -10.0 + step, -step, run="steep") for step in range(10)]
    flat = [HistoryPoint(step, -1.0 + step / 20, -2.0, run="flat") for step in range(10)]
    broken = [HistoryPoint(0, math.nan, -math.inf, run="broken"), HistoryPoint(1, -1.0, -2.0, run="broken")]
    alone, together = history_figures(flat), history_figures([*steep, *flat, *broken])
    scales = [y_ticks(figure.chart) for figure in together]
    assert [figure.heading for figure in together] == ["steep", "flat", "broken"]
    assert scales[0] == scales[1] == scales[2] != y_ticks(alone[0].chart)
    values = [float(tick) for tick in scales[0]]
    assert values[0] <= -10
    assert values[-1] >= 8  # the margin at the end of the steep one


@pytest.mark.parametrize("count", [1, 12, 13, 22, 24, 100])
def test_no_line_has_more_than_a_dozen_marks_and_its_ends_have_one(count: int) -> None:
    (figure,) = history_figures([HistoryPoint(step, float(step)) for step in range(count)])
    marks = re.findall(r'class="mark k0" d="M([-\d.]+) ([-\d.]+)', figure.chart)[:-1]  # the last is the label's
    assert 1 <= len(marks) <= 13
    assert len(marks) >= min(count, 6)


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


def test_every_score_is_compared_with_its_own_baseline(tmp_path: Path) -> None:
    found = [
        *HarnessScore.of({"t": {"acc": 0.5, "acc_stderr": 0.03}}, "base"),
        *HarnessScore.of({"t": {"acc": 0.75, "acc_stderr": 0.04}}, "first", "base"),
        *HarnessScore.of({"t": {"acc": 0.75, "acc_stderr": 0.04}}, "first"),  # a baseline itself
        *HarnessScore.of({"t": {"acc": 0.7}, "other": {"acc": 0.1}}, "second", "first"),
    ]
    page = write_report(tmp_path / "p.html", [], title="t", asked={}, harness=found).read_text(encoding="utf-8")
    table = page[page.index("General ability</h2>") :]
    heads = re.findall(r'<th scope="col">([^<]*)</th>', table)
    assert [head for head in heads if head] == ["base", "first", "difference", "second", "difference"]
    rows = re.findall(r'<tr><th scope="row">([^<]+)</th>(.*?)</tr>', table)
    cells = {name: re.findall(r"<td>(.*?)</td>", row) for name, row in rows}
    assert cells["t, acc"] == [
        "0.5000<small>± 0.0300</small>",
        "0.7500<small>± 0.0400</small>",
        "+0.2500<small>± 0.0500</small>",
        "0.7000",
        "-0.0500",  # without a standard error of both there is none of the difference
    ]
    assert cells["other, acc"] == ["", "", "", "0.1000", ""]
