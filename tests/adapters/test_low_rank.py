"""A change as a product: what is done to its factors leaves the product as it is."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from corsa_plugins.adapters.low_rank import LowRank, joined


def update(d_out: int, d_in: int, rank: int, seed: int = 0, scale: float = 1.0) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    return LowRank(
        torch.randn(d_out, rank, generator=generator) * scale, torch.randn(d_in, rank, generator=generator) / scale
    )


@given(seed=st.integers(0, 99), rank=st.integers(1, 9), exponent=st.integers(-12, 12))
def test_balanced_is_the_same_product_bit_for_bit_from_columns_of_about_one_norm(
    seed: int, rank: int, exponent: int
) -> None:
    change = update(5, 7, rank, seed, 10.0**exponent)
    balanced = change.balanced()
    for column in range(rank):
        one, other = (LowRank(c.left[:, [column]], c.right[:, [column]]).delta() for c in (change, balanced))
        assert torch.equal(one, other)
    ratio = balanced.left.norm(dim=0) / balanced.right.norm(dim=0)
    assert ((ratio > 0.49) & (ratio < 2.01)).all()


def test_a_column_of_zeros_stays_one() -> None:
    change = update(4, 6, 2)
    change.right[:, 1] = 0
    assert torch.equal(change.balanced().delta(), change.delta())


def test_padded_adds_columns_and_no_change() -> None:
    change = update(4, 6, 2)
    assert change.padded(5).rank == 5
    assert torch.equal(change.padded(5).delta(), change.delta())


def test_narrowed_has_no_more_columns_than_the_smaller_side() -> None:
    for d_out, d_in in ((4, 6), (6, 4)):
        change = update(d_out, d_in, 9)
        assert change.narrowed().rank == 4
        torch.testing.assert_close(change.narrowed().delta(), change.delta(), rtol=0, atol=0)
    assert change.padded(3 + change.rank).narrowed().rank == 4
    few = update(4, 6, 3)
    assert few.narrowed() is few


def test_joined_is_the_sum() -> None:
    one, other = update(4, 6, 2), update(4, 6, 3, seed=1)
    torch.testing.assert_close(joined([one, other]).delta(), one.delta() + other.delta())
