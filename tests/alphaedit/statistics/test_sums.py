"""Sums that were half added to are never kept."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.support.collecting import collect_into


def test_half_added_sums_are_never_kept(tmp_path, tiny_llama, tiny_tokenizer, monkeypatch):
    from corsa_plugins.alphaedit.statistics.checkpoint import KeySums

    whole = collect_into(tmp_path / "whole", tiny_llama, tiny_tokenizer)
    calls = itertools.count()
    plain = torch.Tensor.__matmul__

    def fails(first, second):
        if next(calls) == 7:  # the second layer of the fourth batch
            raise MemoryError
        return plain(first, second)

    add = KeySums.add

    def guarded(self, keys, position):
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "__matmul__", fails)
            add(self, keys, position)

    with monkeypatch.context() as patch:
        patch.setattr(KeySums, "add", guarded)
        with pytest.raises(MemoryError):
            collect_into(tmp_path / "parts", tiny_llama, tiny_tokenizer)
    parts = collect_into(tmp_path / "parts", tiny_llama, tiny_tokenizer)
    for layer in (0, 1):  # the first was added to, the second was not
        assert torch.allclose(parts.moment(layer), whole.moment(layer), rtol=1e-12, atol=0)
