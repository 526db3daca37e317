"""Weights with updates in them are written in parts, with the same bits."""

from __future__ import annotations

import pytest
import torch

from corsa_plugins.alphaedit import weights
from corsa_plugins.alphaedit.weights import LayerUpdate, write_weight
from corsa_plugins.model.architecture import LinearMap
from corsa_plugins.model.identity import checksum


def test_weights_are_written_by_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    updates = [LayerUpdate(*(torch.randn(size, n, generator=generator) for size in (6, 9, 6))) for n in (2, 1)]
    linear = torch.nn.Linear(6, 9)
    down = LinearMap("down", linear, 6, 9)
    original = linear.weight.detach().clone()
    expected = original.double() + sum(update.left.double() @ update.right.double().T for update in updates)
    checksums = []
    for chunk in (1, 12, 10**6):
        monkeypatch.setattr(weights, "CHUNK", chunk)
        write_weight(down, original, updates)
        torch.testing.assert_close(linear.weight.detach(), expected.float(), rtol=1e-6, atol=1e-6)
        checksums.append(checksum(linear.weight))
    assert len(set(checksums)) == 1
    write_weight(down, original, [])
    assert torch.equal(linear.weight, original)
