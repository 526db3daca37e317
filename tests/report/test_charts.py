"""Charts say what they are given, to whoever looks and to whoever does not."""

from __future__ import annotations

import itertools
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corsa_plugins.report.charts import BOTTOM, HEIGHT, TOP, Series, histogram, line_chart, ticks
from tests.support.html import ATTACK, Page


def marks(chart, classes):
    """Where the marks of these classes are."""
    found = re.findall(rf'class="{classes}" d="[^"]+" transform="translate\(([-\d.]+) ([-\d.]+)\)"', chart)
    return [(float(x), float(y)) for x, y in found]


def test_numbers_that_are_not_finite_are_left_out():
    points = [(0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0)]
    chart = line_chart([Series("a", points)], title="t", x_label="x", y_label="y")
    assert chart.count('class="mark k0"') == 2
    assert chart.count('class="mark k0 key"') == 1  # at the label
    assert "nan" not in chart
    assert "inf" not in chart
    assert line_chart([Series("a", points[1:3])], title="t", x_label="x", y_label="y") == ""
    assert histogram([("a", [math.nan])], title="t", x_label="x") == ""
    assert histogram([], title="t", x_label="x") == ""


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [0.0], [1e-12, 1e12], [-3.0, 4.0]])
def test_any_spread_of_values_can_be_drawn(values):
    chart = line_chart([Series("a", list(enumerate(values)))], title="t", x_label="x", y_label="y")
    Page(chart)
    heights = [y for _, y in marks(chart, "mark k0")]
    assert len(heights) == len(values)
    assert all(TOP <= height <= HEIGHT - BOTTOM for height in heights)
    Page(histogram([("", values)], title="t", x_label="x"))


def test_a_higher_value_is_higher_and_a_later_one_further_right():
    chart = line_chart([Series("a", [(0, 1), (1, 3), (2, 2)])], title="t", x_label="x", y_label="y")
    (path,) = re.findall(r'class="line k0" d="M([^"]+)"', chart)
    (x0, y0), (x1, y1), (x2, y2) = [tuple(map(float, pair.split())) for pair in path.split("L")]
    assert x0 < x1 < x2
    assert y1 < y2 < y0


def test_a_histogram_has_all_values():
    chart = histogram([("", [0.0, 0.1, 0.1, 1.0])], title="t", x_label="x", bins=4)
    (path,) = re.findall(r'class="bars k0" d="M([^"]+)Z?"', chart)
    heights = [float(pair.split()[1]) for pair in path.split("L")]
    base = heights[0]
    tallest = base - min(heights)
    bars = [(base - height) / tallest for height in heights[1:-1:2]]
    assert bars == pytest.approx([1, 0, 0, 1 / 3], abs=0.02)


def test_series_are_told_apart_without_colour():
    lines = [Series(f"s{i}", [(0, i), (1, i)]) for i in range(6)]
    chart = line_chart(lines, title="t", x_label="x", y_label="y")
    shapes = set(re.findall(r'class="mark k\d" d="([^"]+)"', chart))
    kinds = set(re.findall(r'class="line (k\d)"', chart))
    assert len(kinds) == 6
    assert len(shapes) == 6
    for i in range(6):
        assert f">s{i}<" in chart


@settings(max_examples=50, deadline=None)
@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e6))
def test_ticks_cover_the_range_with_few_even_steps(low, width):
    found = ticks(low, low + width)
    assert 2 <= len(found) <= 9
    slack = 1e-6 * (found[1] - found[0]) + 1e-9 * abs(low)
    assert found[0] <= low + slack
    assert found[-1] >= low + width - slack
    steps = [b - a for a, b in itertools.pairwise(found)]
    assert steps == pytest.approx([steps[0]] * len(steps))


def test_texts_are_texts_whatever_they_are():
    odd = [ATTACK, "$x_1$", "a\nb", "\x00\ud800", "日本語 🎉", "", " "]
    lines = [Series(text, [(0, i), (1, i)], notes=[text, text]) for i, text in enumerate(odd)]
    chart = line_chart(lines, title=ATTACK, x_label="$x$", y_label=ATTACK)
    found = Page(chart)
    assert found.count("script") == found.count("img") == 0
    words = "".join(found.words)
    assert words.count(ATTACK) >= 4  # the axis, the label and a note at each point
    assert "$x_1$" in words
    assert "日本語 🎉" in words
    assert [attributes["aria-label"] for tag, attributes in found.elements if tag == "svg"] == [ATTACK]
    histogram([(text, [0.1, 0.2]) for text in odd], title=ATTACK, x_label=ATTACK)


def test_it_refers_to_nothing_and_leaves_its_looks_to_the_page():
    lines = [Series("a", [(0, 1), (1, 2)], low=[0, 1], high=[2, 3]), Series("b", [(1, 1)], joined=False, star=True)]
    for chart in (
        line_chart(lines, title="t", x_label="x", y_label="y"),
        histogram([("a", [1.0]), ("b", [2.0, 3.0])], title="t", x_label="x"),
    ):
        for tag, attributes in Page(chart).elements:
            assert attributes["class"] if tag != "title" else not attributes
            allowed = {"class", "d", "x", "y", "transform", "text-anchor", "viewbox", "role", "aria-label"}
            assert set(attributes) <= allowed


def test_an_interval_reaches_from_its_low_to_its_high_end():
    line = Series("a", [(0, 1.0), (1, 2.0)], low=[0.0, math.nan], high=[3.0, 3.0])
    chart = line_chart([line], title="t", x_label="x", y_label="y")
    (path,) = re.findall(r'class="err k0" d="M([^"]+)"', chart)
    (x, low), (same, high) = [tuple(map(float, pair.split())) for pair in path.split("L")]
    assert x == same
    (point, _) = marks(chart, "mark k0")
    assert point[0] == x
    assert (point[1] - low) / (high - low) == pytest.approx(1 / 3, abs=0.01)


def test_labels_do_not_overlap():
    lines = [Series(f"line {i}", [(0, 0), (1, i / 100)]) for i in range(12)]
    chart = line_chart(lines, title="t", x_label="x", y_label="y", span=[100])
    heights = sorted(y for kind in range(6) for _, y in marks(chart, f"mark k{kind} key"))
    assert len(heights) == 12
    assert min(b - a for a, b in itertools.pairwise(heights)) >= 12.8
    assert heights[-1] <= HEIGHT - BOTTOM
