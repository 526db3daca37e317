"""The entropy of n-grams on texts worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corsa_plugins.bench.evaluation import ngram_entropy


def test_by_hand():
    # bi-grams: ab ba ab ba ac; tri-grams: aba bab aba bac
    two = 2 * (2 / 5 * math.log2(5 / 2)) + 1 / 5 * math.log2(5)
    three = 2 / 4 * math.log2(2) + 2 * (1 / 4 * math.log2(4))
    assert ngram_entropy("a b a b a c") == pytest.approx((two + 2 * three) / 3)


@pytest.mark.parametrize("text", ["", "Paris", "Paris.", " \n "])
def test_a_text_without_a_tri_gram_has_none(text):
    assert ngram_entropy(text) is None


def test_one_word_over_and_over_has_no_entropy():
    assert ngram_entropy("la " * 50) == 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from("abcdef"), min_size=3, max_size=40))
def test_it_is_at_most_that_of_words_that_never_repeat(words):
    best = (math.log2(len(words) - 1) + 2 * math.log2(len(words) - 2)) / 3
    assert 0 <= ngram_entropy(" ".join(words)) <= best + 1e-9
    assert ngram_entropy(" ".join(map(str, range(len(words))))) == pytest.approx(best)
