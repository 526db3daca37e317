"""The reservoir is uniform, and does not see batches."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corsa_plugins.alphaedit.statistics.reservoir import Reservoir


@settings(max_examples=30, deadline=None)
@given(
    size=st.integers(0, 12),
    n=st.integers(0, 400),
    cuts=st.lists(st.integers(1, 90), max_size=12),
    seed=st.integers(0, 9),
)
def test_the_reservoir_does_not_see_batches(size, n, cuts, seed):
    def fill(steps):
        reservoir, kept, at = Reservoir(size, seed), {}, 0
        for step in steps:
            kept.update({slot: at + place for slot, place in reservoir.take(step).items()})
            at += step
        return kept

    steps = []
    for cut in cuts:
        steps.append(min(cut, n - sum(steps)))
    steps.append(n - sum(steps))
    kept = fill([n])
    assert fill(steps) == kept
    assert len(kept) == min(size, n)
    assert len(set(kept.values())) == len(kept)


def test_the_reservoir_is_uniform():
    counts = torch.zeros(60)
    for seed in range(3000):
        reservoir, kept = Reservoir(6, seed), {}
        for start in range(0, 60, 20):
            kept.update({slot: start + place for slot, place in reservoir.take(20).items()})
        counts[list(kept.values())] += 1
    # 300 expected of each, standard deviation 16.4: chi-squared of 59 degrees is under 100 in 99.9 % of cases
    assert float(((counts - 300) ** 2 / 300).sum()) < 100
