"""Scaling and pruning deltas, against the float64 oracle and as identities."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corsa_plugins.errors import SettingError
from corsa_plugins.merging import memory
from corsa_plugins.merging.comparison import same_bits
from corsa_plugins.merging.deltas import DeltaError, EditedTensor, merge_deltas, prune_delta
from tests.oracles import deltas as oracle
from tests.support.tensors import DENSITIES, DTYPES, WEIGHTS, tensors


class TestOracle:
    @settings(max_examples=150, deadline=None)
    @given(
        tensors(3), WEIGHTS, WEIGHTS, DENSITIES, DENSITIES, st.booleans(), st.booleans(), st.sampled_from([3, 2**17])
    )
    def test_any_merge_of_two(self, three, w1, w2, p1, p2, per_row, prune_vectors, chunk):
        base, one, two = three
        whole_chunk, memory.CHUNK = memory.CHUNK, chunk
        try:
            got = merge_deltas(
                base,
                [EditedTensor(one, w1, p1), EditedTensor(two, w2, p2)],
                per_row=per_row,
                prune_vectors=prune_vectors,
            )
        finally:
            memory.CHUNK = whole_chunk
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


class TestBadInput:
    def test_a_merge_that_the_dtype_cannot_hold(self):
        base, edited = torch.zeros(2, 3, dtype=torch.float16), torch.full((2, 3), 1e-2, dtype=torch.float16)
        item = EditedTensor(edited, 1e8, 0.2, "./edited")
        with pytest.raises(DeltaError, match=r"mlp: the merge overflows float16 with the weight 1e\+08 for \./edited"):
            merge_deltas(base, [item], name="mlp")
        with pytest.raises(DeltaError, match="overflows float16"):  # an edited tensor of a wider dtype, taken whole
            merge_deltas(base, [EditedTensor(torch.full((2, 3), 1e6), 1.0, 1.0)])
        assert merge_deltas(base.float(), [item]).isfinite().all()

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
