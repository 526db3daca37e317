"""Which elements are kept: as many as the density says, the largest, and of equal ones the first."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corsa_plugins.merging import memory, selection
from corsa_plugins.merging.deltas import DeltaError, EditedTensor, merge_deltas, prune_delta
from corsa_plugins.merging.selection import kept_count
from tests.oracles import deltas as oracle
from tests.support.tensors import DENSITIES, DTYPES


class TestTies:
    @pytest.mark.usefixtures("_sizes")
    @pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
    def test_ties_go_to_the_first(self, density):
        got = prune_delta(torch.full((4, 5), -1.5), density)
        assert torch.equal(got.view(-1) != 0, torch.arange(20) < round(density * 20))


class TestCount:
    @given(st.integers(0, 10**9), DENSITIES)
    def test_it_is_exact_and_positive(self, n, density):
        k = kept_count(n, density)
        assert k == (0 if density == 0 or n == 0 else max(1, round(density * n)))
        assert 0 <= k <= n

    @settings(max_examples=100, deadline=None)
    @given(st.integers(1, 60), DENSITIES)
    def test_as_many_are_kept_where_all_differ(self, n, density):
        delta = torch.randperm(n, generator=torch.Generator().manual_seed(n)) + 1.0
        assert int((prune_delta(delta, density) != 0).sum()) == kept_count(n, density)


class TestSample:
    """Larger tensors: a sample tells where to look, and what it tells may be wrong."""

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch):
        monkeypatch.setattr(selection, "SAMPLE", 2**10)
        monkeypatch.setattr(memory, "CHUNK", 3000)
        monkeypatch.setattr(selection, "MAX_CANDIDATES", 20_000)

    @pytest.fixture
    def histograms(self, monkeypatch):
        """How often they were needed."""
        calls, edge_by_histograms = [], selection._edge_by_histograms

        def counted(chunks, k):
            calls.append(k)
            return edge_by_histograms(chunks, k)

        monkeypatch.setattr(selection, "_edge_by_histograms", counted)
        return calls

    def check(self, base, edited, density):
        got = merge_deltas(base, [EditedTensor(edited, 0.8, density)])
        assert torch.equal(got, oracle.rounded(oracle.merge(base, [edited], [0.8], [density]), base.dtype))

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("density", [1e-6, 0.01, 0.2, 0.77, 0.99999])
    def test_random_matrices_need_no_histogram(self, histograms, dtype, density):
        generator = torch.Generator().manual_seed(0)
        base = torch.randn(300, 500, generator=generator).to(dtype)
        self.check(base, (base.double() + 0.3 * torch.randn(300, 500, generator=generator)).to(dtype), density)
        assert not histograms

    def test_nor_do_many_equal_magnitudes(self, histograms):
        n = torch.arange(150_000)
        self.check(torch.zeros(len(n)), torch.where(n % 7 == 0, 2.0, torch.where(n % 2 == 0, 1.0, -1.0)), 0.5)
        assert not histograms

    @pytest.mark.parametrize("density", [0.001, 0.1, 0.5])
    @pytest.mark.parametrize("size", [10.0, 0.1])
    def test_a_sample_that_misleads(self, histograms, density, size):
        base = torch.zeros(200_000)
        edited = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
        chunks = memory.DeltaChunks(torch.arange(200_000.0), base, None)
        places = chunks.sample(200_000 // 128).view(torch.float64).long()
        edited[places] = size * (1 + torch.rand(len(places), generator=torch.Generator().manual_seed(1)))
        self.check(base, edited, density)
        assert histograms

    @pytest.mark.parametrize("value", [math.nan, -math.inf])
    @pytest.mark.parametrize("density", [0.01, 0.9])
    def test_a_single_damaged_value_is_found(self, value, density):
        edited = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
        edited[123_457] = value
        with pytest.raises(DeltaError, match=rf"holds {value} at flat index 123457"):
            merge_deltas(torch.zeros(200_000), [EditedTensor(edited, 0.8, density)])
