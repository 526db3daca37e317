"""Metrics on cases worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corsa_plugins.bench.evaluation import (
    bootstrap_mean,
    exact_match_tokens,
    magnitude,
    margin,
    ngram_entropy,
)


@pytest.mark.parametrize(
    ("predicted", "target", "matches"),
    [
        ([5, 6], [5, 6], True),
        ([5, 6, 9], [5, 6], True),
        ([5, 7], [5, 6], False),
        ([5], [5, 6], False),
        ([], [5], False),
    ],
)
def test_exact_match_needs_every_token_of_the_target(predicted, target, matches):
    assert exact_match_tokens(predicted, target) is matches


def test_an_empty_target_matches_nothing_it_is_an_error():
    with pytest.raises(ValueError, match="no tokens"):
        exact_match_tokens([1], [])


def test_margin_and_magnitude_of_known_probabilities():
    new, old = math.log(0.6), math.log(0.2)
    assert margin(new, old) == pytest.approx(math.log(3))
    assert magnitude(new, old)
    assert not magnitude(old, new)
    assert not magnitude(new, new)


class TestFluency:
    def test_by_hand(self):
        # bi-grams: ab ba ab ba ac; tri-grams: aba bab aba bac
        two = 2 * (2 / 5 * math.log2(5 / 2)) + 1 / 5 * math.log2(5)
        three = 2 / 4 * math.log2(2) + 2 * (1 / 4 * math.log2(4))
        assert ngram_entropy("a b a b a c") == pytest.approx((two + 2 * three) / 3)

    @pytest.mark.parametrize("text", ["", "Paris", "Paris.", " \n "])
    def test_a_text_without_a_tri_gram_has_none(self, text):
        assert ngram_entropy(text) is None

    def test_one_word_over_and_over_has_no_entropy(self):
        assert ngram_entropy("la " * 50) == 0

    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.sampled_from("abcdef"), min_size=3, max_size=40))
    def test_it_is_at_most_that_of_words_that_never_repeat(self, words):
        best = (math.log2(len(words) - 1) + 2 * math.log2(len(words) - 2)) / 3
        assert 0 <= ngram_entropy(" ".join(words)) <= best + 1e-9
        assert ngram_entropy(" ".join(map(str, range(len(words))))) == pytest.approx(best)


class TestBootstrap:
    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.floats(-100, 100), min_size=1, max_size=30))
    def test_the_interval_holds_the_mean_and_lies_within_the_values(self, values):
        mean, low, high, n = bootstrap_mean(values, n_resamples=300)
        slack = 1e-9
        assert mean == pytest.approx(np.mean(values), abs=1e-9)
        assert min(values) - slack <= low <= high <= max(values) + slack
        assert n == len(values)

    def test_constant_values_have_no_width(self):
        assert bootstrap_mean([1.0] * 7) == (1.0, 1.0, 1.0, 7)

    def test_its_width_is_that_of_the_normal_interval_for_many_values(self):
        values = [1.0] * 300 + [0.0] * 700
        _, low, high, _ = bootstrap_mean(values)
        expected = 2 * 1.96 * math.sqrt(0.3 * 0.7 / 1000)
        assert high - low == pytest.approx(expected, rel=0.1)

    def test_shares_get_the_interval_that_drawing_one_by_one_gives(self):
        values = [1.0] * 30 + [0.5] * 20 + [0.0] * 50
        quick = bootstrap_mean(values, n_resamples=20_000)
        # values all distinct by a hair are drawn one by one
        slow = bootstrap_mean([v + 1e-9 * i for i, v in enumerate(values)], n_resamples=20_000)
        assert quick == pytest.approx(slow, abs=0.01)

    def test_the_same_values_give_the_same_interval(self):
        values = list(np.random.default_rng(3).random(50))
        assert bootstrap_mean(values) == bootstrap_mean(values)
        assert bootstrap_mean(values, seed=1)[1:3] != bootstrap_mean(values, seed=2)[1:3]

    def test_working_in_chunks_covers_every_resample(self):
        # long enough that the resamples do not fit one chunk
        values = np.random.default_rng(0).random(30_000)
        _, low, high, _ = bootstrap_mean(values, n_resamples=200)
        assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(values.size), rel=0.25)

    def test_no_values_are_an_error(self):
        with pytest.raises(ValueError, match="no values"):
            bootstrap_mean([])
