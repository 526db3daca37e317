"""Margin and magnitude on probabilities worked out by hand."""

from __future__ import annotations

import math

import pytest

from corsa_plugins.bench.evaluation import magnitude, margin


def test_margin_and_magnitude_of_known_probabilities():
    new, old = math.log(0.6), math.log(0.2)
    assert margin(new, old) == pytest.approx(math.log(3))
    assert magnitude(new, old)
    assert not magnitude(old, new)
    assert not magnitude(new, new)
