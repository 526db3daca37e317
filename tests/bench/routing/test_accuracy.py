"""How often a router is right, and what it costs."""

from __future__ import annotations

import pytest

from corsa_plugins.bench.routing.accuracy import routing_accuracy, routing_share_of_gap
from corsa_plugins.errors import SettingError


def test_the_share_of_the_gap():
    assert routing_share_of_gap(0.6627, 0.66, 0.61) == pytest.approx(0.05 / 0.0527)
    assert routing_share_of_gap(0.6, 0.6, 0.6) is None
    with pytest.raises(SettingError, match="2 routes for 1"):
        routing_accuracy([0, 1], [0])


def test_questions_about_one_thing_are_one_value():
    assert routing_accuracy([0, 1, 1, 1], [0, 0, 1, 1])[::3] == (0.75, 4)
    assert routing_accuracy([0, 1, 1, 1], [0, 0, 0, 1], ["a", "a", "a", "b"])[::3] == (pytest.approx(2 / 3), 2)
