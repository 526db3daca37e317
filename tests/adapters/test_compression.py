"""Compression against the literal one of the oracle, and what it promises for every key."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from corsa_plugins.adapters.compression import KeyMoment, compress, needed_rank
from corsa_plugins.adapters.low_rank import LowRank
from tests.oracles import adapters as oracle


def problem(seed: int, d_out: int = 6, d_in: int = 9, columns: int = 5) -> tuple[LowRank, KeyMoment]:
    """A change and keys; of the preserved ones there are fewer than directions."""
    rng = np.random.default_rng(seed)
    left, right, edits, kept = (
        torch.from_numpy(rng.normal(size=shape))
        for shape in ((d_out, columns), (d_in, columns), (d_in, 4), (d_in, d_in - 3))
    )
    return LowRank(left, right), KeyMoment(kept @ kept.T / 7, edits)


@given(
    seed=st.integers(0, 10**6),
    columns=st.integers(1, 12),
    rank=st.integers(1, 12),
    preserved=st.booleans(),
    edits=st.booleans(),
)
def test_agrees_with_the_oracle(seed: int, columns: int, rank: int, preserved: bool, edits: bool) -> None:
    change, moment = problem(seed, columns=columns)
    moment = KeyMoment(moment.preserved if preserved else None, moment.edits if edits else None)
    known = np.zeros((9, 0)) if moment.edits is None else moment.edits.numpy()
    C = oracle.moment(None if moment.preserved is None else moment.preserved.numpy(), known)
    C = C if preserved or edits else np.eye(9)
    result = compress(change, rank, moment)
    delta = change.delta().numpy()
    literal = oracle.best(delta, C, rank)
    assert result.update.rank <= max(rank, 1)
    # the roots of C cost the oracle half of its digits
    ours = result.update.delta().numpy()
    assert oracle.loss(delta, literal, C) == pytest.approx(oracle.loss(delta, ours, C), abs=1e-10)
    assert result.loss == pytest.approx(oracle.loss(delta, ours, C), abs=1e-10)
    if oracle.gap(delta, C, rank) > 1e-3:  # else there is more than one best
        np.testing.assert_allclose(ours, literal, atol=1e-8 * np.abs(delta).max())


def test_what_fits_is_left_as_it_is() -> None:
    change, moment = problem(0)
    assert compress(change, 5, moment).update is change
    assert compress(change, 5, moment).loss == 0


@given(seed=st.integers(0, 999), rank=st.integers(1, 4))
def test_no_key_gives_more_of_a_change_than_with_the_whole(seed: int, rank: int) -> None:
    change, moment = problem(seed)
    keys = torch.from_numpy(np.random.default_rng(seed + 1).normal(size=(9, 20)))
    whole, reduced = (part.delta() @ keys for part in (change, compress(change, rank, moment).update))
    assert (reduced.norm(dim=0) <= whole.norm(dim=0) * (1 + 1e-9)).all()


def test_the_norm_of_the_keys_serves_the_keys_better_than_the_plain_one() -> None:
    change, moment = problem(3)
    assert moment.edits is not None
    lost = [
        float(((change.delta() - compress(change, 2, norm).update.delta()) @ moment.edits).norm())
        for norm in (KeyMoment(edits=moment.edits), KeyMoment())
    ]
    assert lost[0] < 0.9 * lost[1]


def test_the_rank_that_is_needed() -> None:
    rng = np.random.default_rng(0)
    low = rng.normal(size=(8, 3)) @ rng.normal(size=(3, 10))
    noise = rng.normal(size=(8, 10))
    change = LowRank.of(torch.from_numpy(low + 1e-4 * noise))
    assert needed_rank(change, 2e-4 * float(np.linalg.norm(noise))) == 3
    assert needed_rank(change, 0.0) == 8
    assert needed_rank(LowRank.of(torch.zeros(8, 10)), 0.0) == 1
    exact = compress(change, 3)
    assert float((exact.update.delta() - change.delta()).norm()) <= 2e-4 * float(np.linalg.norm(noise))
