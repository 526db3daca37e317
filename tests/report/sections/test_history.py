"""Trainings side by side, and where their points come from."""

from __future__ import annotations

import math
import re

import pytest

from corsa_plugins.report.sections.history import HistoryPoint, history_figures, history_points


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
    marks = re.findall(r'class="mark k0" d="[^"]+" transform="translate\(([-\d.]+) ', figure.chart)
    assert 1 <= len(marks) <= 13
    assert len(marks) >= min(count, 6)
    assert marks == sorted(marks, key=float)
    if count > 1:
        (path,) = re.findall(r'class="line k0" d="M([^"]+)"', figure.chart)
        ends = [point.split()[0] for point in (path.split("L")[0], path.split("L")[-1])]
        assert [marks[0], marks[-1]] == ends


def test_points_of_a_trainers_log():
    log = [
        {"step": 10, "loss": 1.0, "logps/new": -3.0, "logps/old": -5.0, "margin": 2.5},
        {"step": 20, "logps/new": -1.0},
        {"step": 20, "train_runtime": 3.0},
    ]
    assert history_points(log, "CoRSA") == [
        HistoryPoint(10, -3.0, -5.0, 2.5, "CoRSA"),
        HistoryPoint(20, -1.0, None, None, "CoRSA"),
    ]
