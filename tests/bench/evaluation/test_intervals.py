"""The bootstrap interval of a mean."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corsa_plugins.bench.evaluation import bootstrap_mean


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=30))
def test_the_interval_holds_the_mean_and_lies_within_the_values(values):
    mean, low, high, n = bootstrap_mean(values, n_resamples=300)
    slack = 1e-9
    assert mean == pytest.approx(np.mean(values), abs=1e-9)
    assert min(values) - slack <= low <= high <= max(values) + slack
    assert n == len(values)


def test_constant_values_have_no_width():
    assert bootstrap_mean([1.0] * 7) == (1.0, 1.0, 1.0, 7)


def test_its_width_is_that_of_the_normal_interval_for_many_values():
    values = [1.0] * 300 + [0.0] * 700
    _, low, high, _ = bootstrap_mean(values)
    expected = 2 * 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert high - low == pytest.approx(expected, rel=0.1)


def test_shares_get_the_interval_that_drawing_one_by_one_gives():
    values = [1.0] * 30 + [0.5] * 20 + [0.0] * 50
    quick = bootstrap_mean(values, n_resamples=20_000)
    # values all distinct by a hair are drawn one by one
    slow = bootstrap_mean([v + 1e-9 * i for i, v in enumerate(values)], n_resamples=20_000)
    assert quick == pytest.approx(slow, abs=0.01)


def test_the_same_values_give_the_same_interval():
    values = list(np.random.default_rng(3).random(50))
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert bootstrap_mean(values, seed=1)[1:3] != bootstrap_mean(values, seed=2)[1:3]


def test_working_in_chunks_covers_every_resample():
    # long enough that the resamples do not fit one chunk
    values = np.random.default_rng(0).random(30_000)
    _, low, high, _ = bootstrap_mean(values, n_resamples=200)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(values.size), rel=0.25)


def test_no_values_are_an_error():
    with pytest.raises(ValueError, match="no values"):
        bootstrap_mean([])


def test_every_bootstrap_sample_of_two_values_is_known():
    # means 0, 1/2, 1 with probability 1/4, 1/2, 1/4: the 2.5 % quantile is 0, the 30 % quantile 1/2
    assert bootstrap_mean([0.0, 1.0])[:3] == (0.5, 0.0, 1.0)
    assert bootstrap_mean([0.0, 1.0], confidence=0.4)[:3] == (0.5, 0.5, 0.5)
