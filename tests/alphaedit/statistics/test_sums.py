"""Sums that were half added to are never kept; and how exact they are."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_only_one_half_is_multiplied_and_the_moment_is_whole(dtype, monkeypatch) -> None:
    keys = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    monkeypatch.setattr("corsa_plugins.alphaedit.statistics.sums.BLOCK", 24)
    sums = KeySums({0: 64}, sample_size=0, seed=0)
    with FlopCounterMode(display=False) as counter:
        for part in keys.split(20):
            sums.add({0: part}, Position())
    blocks = [(24, 64), (24, 40), (16, 16)]
    assert counter.get_total_flops() == 2 * 50 * sum(rows * columns for rows, columns in blocks)
    restored = KeySums({0: 64}, sample_size=0, seed=0)
    kept = {name: tensor.clone() for name, tensor in sums.tensors().items()}
    restored.restore(kept, sums.count, sums.position)
    wanted = keys.double().mT @ keys.double() / 50
    for moment in (sums.moment(0), restored.moment(0)):
        assert torch.equal(moment, moment.mT)
        torch.testing.assert_close(moment, wanted, rtol=1e-5, atol=1e-6 if dtype == torch.bfloat16 else 1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_on_a_gpu_the_sums_are_those_of_float64(dtype) -> None:
    keys = torch.randn(9000, 1536, generator=torch.Generator().manual_seed(0)).to(dtype)
    sums = KeySums({0: 1536}, sample_size=0, seed=0)
    sums.add({0: keys.cuda()}, Position())
    wanted = keys.double().mT @ keys.double() / 9000
    torch.testing.assert_close(sums.moment(0).cpu(), wanted, rtol=0, atol=1e-5)
