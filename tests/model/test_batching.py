"""Rectangles that hold every row where it should be, and batches that lose none."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from corsa_plugins.errors import SettingError
from corsa_plugins.model.batching import base_model, batches_by_length, input_device, map_by_length, pad
from tests.conftest import llama

rows_of_ids = st.lists(st.lists(st.integers(0, 2**31), max_size=6), min_size=1, max_size=6)


@given(rows=rows_of_ids, value=st.sampled_from([0, -100, 7]), side=st.sampled_from(["left", "right"]))
def test_the_mask_shows_every_row_and_hides_the_padding(rows, value, side):
    ids, mask = pad(rows, value, side=side)
    assert ids.shape == mask.shape == (len(rows), max(map(len, rows)))
    assert ids.dtype == mask.dtype == torch.long
    for row, row_ids, row_mask in zip(rows, ids, mask, strict=True):
        assert row_ids[row_mask.bool()].tolist() == row
        assert (row_ids[~row_mask.bool()] == value).all()
        padding = len(row_mask) - len(row)
        order = [0] * padding + [1] * len(row) if side == "left" else [1] * len(row) + [0] * padding
        assert row_mask.tolist() == order


lengths_of_rows = st.lists(st.integers(1, 5), max_size=30)


@given(lengths=lengths_of_rows, batch_size=st.integers(1, 7), one_length=st.booleans())
def test_every_row_is_in_one_batch_and_lengths_fall(lengths, batch_size, one_length):
    batches = list(batches_by_length(lengths, batch_size, one_length=one_length))
    chosen = [index for batch in batches for index in batch]
    assert sorted(chosen) == list(range(len(lengths)))
    # rows of one length keep their order: what is in a batch depends on nothing else
    assert chosen == sorted(chosen, key=lambda index: (-lengths[index], index))
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    if one_length:
        assert all(len({lengths[index] for index in batch}) == 1 for batch in batches)
    else:
        assert all(len(batch) == batch_size for batch in batches[:-1])


@given(lengths=lengths_of_rows, batch_size=st.integers(1, 7), one_length=st.booleans())
def test_results_are_in_the_order_of_the_rows(lengths, batch_size, one_length):
    rows = list(enumerate(lengths))
    doubled = map_by_length(
        lambda batch: [(index, 2 * length) for index, length in batch], rows, lengths, batch_size, one_length=one_length
    )
    assert doubled == [(index, 2 * length) for index, length in rows]


def test_a_function_that_loses_a_row_is_noticed():
    with pytest.raises(ValueError, match="zip"):
        map_by_length(lambda batch: batch[1:], [1, 2, 3], [1, 1, 1], 2)


@pytest.mark.parametrize("batch_size", [0, -1, True, 2.5])
def test_a_batch_has_at_least_one_row(batch_size):
    with pytest.raises(SettingError, match=r"batch_size is .*: it must be an integer of at least 1"):
        batches_by_length([1], batch_size)
    with pytest.raises(SettingError, match="batch_size"):
        map_by_length(list, [], [], batch_size)


def test_a_model_is_found_inside_its_adapter():
    peft = pytest.importorskip("peft")
    model = llama(20)
    assert base_model(model) is model
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    assert base_model(adapted) is model
    assert input_device(adapted) == input_device(model) == torch.device("cpu")
