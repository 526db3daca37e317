"""Scaling and pruning deltas, against the float64 oracle and as identities."""

from __future__ import annotations

import math

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corsa_plugins.errors import SettingError
from corsa_plugins.merging import deltas
from corsa_plugins.merging.deltas import DeltaError, EditedTensor, kept_count, merge_deltas, prune_delta, same_bits
from tests.oracles import deltas as oracle

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=7)
# few distinct values, so that magnitudes tie; and any values at all
NUMBERS = st.sampled_from([-2.0, -0.5, -0.0, 0.0, 0.5, 2.0]) | st.floats(-1e3, 1e3, width=16)
DENSITIES = st.sampled_from([0.0, 0.2, 0.5, 1.0]) | st.floats(0, 1)
WEIGHTS = st.sampled_from([0.0, 0.8, 1.0, -0.5]) | st.floats(-2, 2)


@st.composite
def tensors(draw, count):
    """``count`` tensors of one shape and dtype."""
    shape, dtype = draw(SHAPES), draw(st.sampled_from(DTYPES))
    return [
        torch.from_numpy(draw(arrays.arrays(np.float64, shape, elements=NUMBERS))).to(dtype).clone()
        for _ in range(count)
    ]


@pytest.fixture(params=[(2**17, 2**20), (5, 0)], ids=["one chunk", "many chunks, histograms only"])
def _sizes(request, monkeypatch):
    monkeypatch.setattr(deltas, "CHUNK", request.param[0])
    monkeypatch.setattr(deltas, "MAX_CANDIDATES", request.param[1])


class TestOracle:
    @settings(max_examples=150, deadline=None)
    @given(
        tensors(3), WEIGHTS, WEIGHTS, DENSITIES, DENSITIES, st.booleans(), st.booleans(), st.sampled_from([3, 2**17])
    )
    def test_any_merge_of_two(self, three, w1, w2, p1, p2, per_row, prune_vectors, chunk):
        base, one, two = three
        whole_chunk, deltas.CHUNK = deltas.CHUNK, chunk
        try:
            got = merge_deltas(
                base,
                [EditedTensor(one, w1, p1), EditedTensor(two, w2, p2)],
                per_row=per_row,
                prune_vectors=prune_vectors,
            )
        finally:
            deltas.CHUNK = whole_chunk
        values = oracle.merge(base, [one, two], [w1, w2], [p1, p2], per_row, prune_vectors)
        assert got.dtype == base.dtype
        assert got.shape == base.shape
        assert torch.equal(got, oracle.rounded(values, base.dtype).reshape(base.shape))

    @pytest.mark.usefixtures("_sizes")
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("density", [0.001, 0.2, 0.77])
    @pytest.mark.parametrize("per_row", [False, True])
    def test_random_matrices(self, dtype, density, per_row):
        generator = torch.Generator().manual_seed(0)
        base = torch.randn(40, 50, generator=generator).to(dtype)
        edited = (base.double() + 0.01 * torch.randn(40, 50, generator=generator)).to(dtype)
        got = merge_deltas(base, [EditedTensor(edited, 0.8, density)], per_row=per_row)
        assert torch.equal(got, oracle.rounded(oracle.merge(base, [edited], [0.8], [density], per_row), dtype))

    def test_a_delta_that_the_storage_dtype_could_not_tell_apart(self):
        # 1 - 2^-30 and 1 - 2^-31 are one number in float32: the larger delta comes second
        base = torch.tensor([2.0**-30, 2.0**-31], dtype=torch.float32)
        got = merge_deltas(base, [EditedTensor(torch.ones(2), 1.0, 0.5)])
        assert torch.equal(got, torch.tensor([2.0**-30, 1.0]))

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


class TestIdentities:
    @settings(max_examples=100, deadline=None)
    @given(tensors(2))
    def test_weight_1_and_density_1_give_the_edited_tensor(self, two):
        base, edited = two
        assert torch.equal(merge_deltas(base, [EditedTensor(edited, 1.0, 1.0)]), edited)

    def test_even_where_it_is_tiny_beside_the_base(self):
        base, edited = torch.tensor([1.0, 1e-30, 7.0]), torch.tensor([1e-30, 1.0, -1e-20])
        assert same_bits(merge_deltas(base, [EditedTensor(edited, 1.0, 1.0)]), edited)

    @given(tensors(2), WEIGHTS, DENSITIES)
    def test_weight_0_density_0_and_itself_give_the_base_untouched(self, two, weight, density):
        base, edited = two
        assert merge_deltas(base, [EditedTensor(edited, 0.0, density)]) is base
        assert merge_deltas(base, [EditedTensor(edited, weight, 0.0)]) is base
        assert merge_deltas(base, [EditedTensor(base.clone(), weight, density)]) is base

    @settings(max_examples=100, deadline=None)
    @given(tensors(1), DENSITIES, st.booleans())
    def test_pruning_twice_is_pruning_once(self, one, density, per_row):
        once = prune_delta(one[0], density, per_row=per_row)
        assert torch.equal(prune_delta(once, density, per_row=per_row), once)

    @settings(max_examples=100, deadline=None)
    @given(tensors(2), st.floats(0.01, 2), DENSITIES)
    def test_scale_is_linear(self, two, weight, density):
        base, edited = (tensor.double() for tensor in two)
        whole = merge_deltas(base, [EditedTensor(edited, 1.0, density)]) - base
        scaled = merge_deltas(base, [EditedTensor(edited, weight, density)]) - base
        torch.testing.assert_close(scaled, weight * whole, rtol=1e-9, atol=1e-9)

    @settings(max_examples=100, deadline=None)
    @given(tensors(3), DENSITIES)
    def test_the_order_of_two_models_does_not_matter(self, three, density):
        base, one, two = three
        items = [EditedTensor(one, 0.5, density), EditedTensor(two, 0.25, 1.0)]
        forward, backward = merge_deltas(base, items), merge_deltas(base, items[::-1])
        torch.testing.assert_close(forward, backward, rtol=2 * torch.finfo(base.dtype).eps, atol=1e-6)

    def test_a_model_taken_twice_at_half_weight_is_the_model(self):
        base, edited = torch.randn(2, 9, 11, dtype=torch.float64)
        half = EditedTensor(edited, 0.4, 0.3)
        torch.testing.assert_close(
            merge_deltas(base, [half, half]), merge_deltas(base, [EditedTensor(edited, 0.8, 0.3)])
        )

    def test_layout_does_not_matter(self):
        base, edited = torch.randn(2, 30, 20)
        want = merge_deltas(base, [EditedTensor(edited)])
        assert torch.equal(merge_deltas(base.t().contiguous().t(), [EditedTensor(edited.t().contiguous().t())]), want)

    def test_nothing_given_is_changed(self):
        base, edited = torch.randn(2, 30, 20)
        copies = base.clone(), edited.clone()
        merge_deltas(base, [EditedTensor(edited)])
        assert same_bits(base, copies[0])
        assert same_bits(edited, copies[1])


class TestScratch:
    def test_it_does_not_grow_with_the_tensor(self):
        """Only the result may: the largest allocation beside it is a chunk, a histogram or the candidates."""
        n = 2**22
        base = torch.zeros(n, dtype=torch.bfloat16)
        edited = torch.arange(n, dtype=torch.float32).bfloat16()
        with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            merge_deltas(base, [EditedTensor(edited)])
        held = peak = 0
        for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
            if event.name() == "[memory]":
                held += event.nbytes()
                peak = max(peak, held)
        assert 2 * n <= peak < 2 * n + 64 * 2**20


class TestBadInput:
    @pytest.mark.parametrize("density", [-0.1, 1.0001, math.nan, math.inf])
    def test_a_density_outside_0_and_1(self, density):
        with pytest.raises(SettingError, match="density is"):
            merge_deltas(torch.zeros(2), [EditedTensor(torch.ones(2), 1.0, density)])

    @pytest.mark.parametrize("weight", [math.nan, math.inf])
    def test_a_weight_that_is_no_number(self, weight):
        with pytest.raises(SettingError, match="weight is"):
            merge_deltas(torch.zeros(2), [EditedTensor(torch.ones(2), weight)])

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    @pytest.mark.parametrize("density", [0.2, 1.0])
    @pytest.mark.parametrize("per_row", [False, True])
    @pytest.mark.parametrize("owner", ["base", "edited"])
    def test_a_damaged_tensor_is_named(self, value, density, per_row, owner):
        both = {"base": torch.zeros(3, 5), "edited": torch.ones(3, 5)}
        both[owner][1, 2] = value
        item = EditedTensor(both["edited"], 0.8, density, label="edited")
        with pytest.raises(DeltaError, match=rf"up_proj of {owner} holds {value} at flat index 7"):
            merge_deltas(both["base"], [item], per_row=per_row, name="up_proj", base_label="base")

    def test_other_shapes_dtypes_and_devices(self):
        with pytest.raises(DeltaError, match=r"q_proj has shape \(3,\) in edited and \(2,\) in base"):
            merge_deltas(
                torch.zeros(2), [EditedTensor(torch.ones(3), label="edited")], name="q_proj", base_label="base"
            )
        with pytest.raises(DeltaError, match=r"torch.int64"):
            merge_deltas(torch.zeros(2), [EditedTensor(torch.ones(2, dtype=torch.int64))])
        with pytest.raises(DeltaError, match="is on meta"):
            merge_deltas(torch.zeros(2), [EditedTensor(torch.ones(2, device="meta"))])


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
        monkeypatch.setattr(deltas, "_PART", 64)
        monkeypatch.setattr(deltas, "_CORES", 3)
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


class TestSample:
    """Larger tensors: a sample tells where to look, and what it tells may be wrong."""

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch):
        monkeypatch.setattr(deltas, "SAMPLE", 2**10)
        monkeypatch.setattr(deltas, "CHUNK", 3000)
        monkeypatch.setattr(deltas, "MAX_CANDIDATES", 20_000)

    @pytest.fixture
    def histograms(self, monkeypatch):
        """How often they were needed."""
        calls, edge_by_histograms = [], deltas._edge_by_histograms

        def counted(source, k):
            calls.append(k)
            return edge_by_histograms(source, k)

        monkeypatch.setattr(deltas, "_edge_by_histograms", counted)
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
        source = deltas._Source(torch.arange(200_000.0), base, None)
        places = source.sample(200_000 // 128).view(torch.float64).long()
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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: torch.cuda.is_available() is False")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("shape", [(7,), (40, 50), (1500, 1100)])
def test_a_gpu_gives_the_same_bits(dtype, per_row, shape):
    generator = torch.Generator().manual_seed(0)
    base, one, two = (torch.randn(shape, generator=generator).to(dtype) for _ in range(3))
    items = [EditedTensor(one, 0.8, 0.2), EditedTensor(two, -0.3, 0.7)]
    want = merge_deltas(base, items, per_row=per_row)
    got = merge_deltas(
        base.cuda(), [EditedTensor(i.tensor.cuda(), i.weight, i.density) for i in items], per_row=per_row
    )
    assert got.is_cuda
    assert same_bits(got.cpu(), want)
    assert merge_deltas(base.cuda(), [EditedTensor(base.cuda())]).is_cuda
