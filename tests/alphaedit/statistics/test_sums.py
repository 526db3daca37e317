"""Sums that were half added to are never kept; and how exact they are."""

from __future__ import annotations

import itertools

import pytest
import torch

from corsa_plugins.alphaedit.statistics.packing import Position
from corsa_plugins.alphaedit.statistics.sums import KeySums
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_products_are_exact_enough_for_the_smallest_eigenvalues(dtype) -> None:
    """Over seven orders of magnitude of eigenvalues, in float32 products of half-precision keys too."""
    g = torch.Generator().manual_seed(0)
    keys = (torch.randn(4096, 64, generator=g) * torch.logspace(0, -3.5, 64)).to(dtype)
    sums = KeySums({0: 64}, sample_size=0, seed=0)
    for part in keys.split(1000):
        sums.add({0: part}, Position())
    literal = torch.linalg.eigvalsh(keys.double().mT @ keys.double() / len(keys))
    torch.testing.assert_close(torch.linalg.eigvalsh(sums.moment(0)), literal, rtol=1e-4, atol=0)
