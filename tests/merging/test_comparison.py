"""Whether two tensors are the same: bits are compared, all of them."""

from __future__ import annotations

import math

import pytest
import torch

from corsa_plugins.merging import comparison
from corsa_plugins.merging.comparison import same_bits
from tests.support.tensors import DTYPES


class TestSameBits:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("n", [1, 3, 8, 1001])
    def test_any_single_difference_is_seen(self, dtype, n):
        one = torch.linspace(-1, 1, n).to(dtype)
        for place in {0, n // 2, n - 1}:
            other = one.clone()
            assert same_bits(one, other)
            other[place] += 0.5
            assert not same_bits(one, other)
            # not contiguous: compared in another way
            strided, twin = torch.stack([other, one], 1)[:, 0], torch.stack([other, other], 1)[:, 1]
            assert same_bits(strided, twin)
            assert not same_bits(strided, torch.stack([one, one], 1)[:, 1])

    def test_a_difference_in_any_part_is_seen(self, monkeypatch):
        """Large tensors are compared by parts; the last one is shorter."""
        monkeypatch.setattr(comparison, "PART", 64)
        monkeypatch.setattr(comparison, "THREADS", 3)
        one = torch.linspace(-1, 1, 1001)
        for place in range(0, 1001, 7):
            other = one.clone()
            assert same_bits(one, other)
            other[place] += 0.5
            assert not same_bits(one, other)

    def test_it_is_bits_that_are_compared(self):
        assert same_bits(torch.tensor([math.nan]), torch.tensor([math.nan]))
        assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
        assert not same_bits(torch.zeros(2), torch.zeros(2).double())
        assert not same_bits(torch.zeros(2, 1), torch.zeros(1, 2))
        assert same_bits(torch.zeros(0, 3), torch.zeros(0, 3))
