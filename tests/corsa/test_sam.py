"""The perturbation: of the asked norm, and back from it bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from corsa_plugins.corsa import (
    perturbed,
)


def test_perturbation_has_the_asked_norm_and_comes_back_bit_for_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    phi = [torch.randn(7, 5, generator=generator), torch.randn(11, generator=generator) * 1e4]
    direction = [torch.randn_like(p) for p in phi]
    norm = torch.cat([d.flatten() for d in direction]).norm()
    before = copy.deepcopy(phi)
    with pytest.raises(RuntimeError, match="inside"), perturbed(phi, direction, float(0.5 / norm)):  # noqa: PT012
        moved = torch.cat([(p.double() - b.double()).flatten() for p, b in zip(phi, before, strict=True)])
        assert moved.norm() == pytest.approx(0.5, rel=1e-2)  # 1e4-sized float32 entries round
        raise RuntimeError("inside")
    assert all(torch.equal(p, b) for p, b in zip(phi, before, strict=True))


def test_the_parameters_stand_at_the_perturbed_point_within_the_block() -> None:
    phi = [torch.ones(3), torch.zeros(2, 2)]
    direction = [torch.tensor([1.0, 2.0, 3.0]), torch.ones(2, 2)]
    with perturbed(phi, direction, 0.5):
        assert torch.equal(phi[0], torch.tensor([1.5, 2.0, 2.5]))
        assert torch.equal(phi[1], torch.full((2, 2), 0.5))
    assert torch.equal(phi[0], torch.ones(3))
    assert torch.equal(phi[1], torch.zeros(2, 2))


def test_an_error_while_the_parameters_are_moved_is_undone_too() -> None:
    """The second direction does not fit: the first parameter has been moved by then."""
    phi = [torch.ones(3), torch.ones(2)]
    with pytest.raises(RuntimeError), perturbed(phi, [torch.ones(3), torch.ones(5)], 1.0):
        raise AssertionError("not reached")
    assert torch.equal(phi[0], torch.ones(3))
    assert torch.equal(phi[1], torch.ones(2))


def test_casts_of_an_autocast_around_the_step_are_those_of_the_moved_parameters() -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    inputs = torch.ones(1, 4)
    with torch.autocast("cpu", torch.bfloat16):
        before = nn.functional.linear(inputs, weight)
        with perturbed([weight], [torch.ones(4, 4)], 1.0):
            moved = nn.functional.linear(inputs, weight)
        after = nn.functional.linear(inputs, weight)
    assert torch.equal(moved, 2 * before)
    assert torch.equal(after, before)
