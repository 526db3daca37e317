"""What holds kept prompts, against sums written out in float64."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from torch import Tensor

from corsa_plugins.corsa.keeping import divergence, keep_gradient, pressure


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def literal(logits: list[list[float]], reference: list[list[float]]) -> list[float]:
    """sum_v p (log p - log q), with loops."""
    found = []
    for now, before in zip(logits, reference, strict=True):
        total = log(sum(exp(z) for z in now))
        found.append(sum(exp(lp) * (lp - (z - total)) for z, lp in zip(now, before, strict=True)))
    return found


def test_the_divergence_is_the_sum_over_the_vocabulary() -> None:
    logits, reference = drawn(3, 7), drawn(3, 7, seed=1).log_softmax(-1)
    torch.testing.assert_close(
        divergence(logits, reference), torch.tensor(literal(logits.tolist(), reference.tolist()), dtype=torch.float64)
    )
    assert divergence(reference + 5.0, reference).abs().max() < 1e-12  # nothing has changed


@pytest.mark.parametrize("tolerance", [1e-3, 1e6])
def test_the_gradient_is_that_of_the_mean_times_a_number(tolerance: float) -> None:
    """By central differences of the mean divergence; past the tolerance in proportion to it."""
    weights, inputs = drawn(5, 4).requires_grad_(), drawn(3, 5, seed=2)
    unused = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    reference = drawn(3, 4, seed=3).log_softmax(-1)

    def mean(values: Tensor) -> float:
        return sum(literal((inputs @ values).tolist(), reference.tolist())) / 3

    (found, nothing), value = keep_gradient(divergence(inputs @ weights, reference), [weights, unused], 0.7, tolerance)
    assert value == pytest.approx(mean(weights.detach()))
    expected, step = torch.zeros_like(weights), 1e-5
    for index in range(weights.numel()):
        shift = torch.zeros(weights.numel(), dtype=torch.float64)
        shift[index] = step
        there, back = (mean(weights.detach() + sign * shift.view(5, 4)) for sign in (1, -1))
        expected.view(-1)[index] = (there - back) / (2 * step)
    factor = 0.7 * max(1.0, value / tolerance)
    torch.testing.assert_close(found, (expected * factor).detach(), rtol=1e-6, atol=1e-9)
    assert not nothing.any()


def test_the_pressure_is_the_weight_within_the_tolerance_and_grows_past_it() -> None:
    assert pressure(0.0, 2.0, 0.1) == pressure(0.1, 2.0, 0.1) == 2.0
    assert pressure(0.4, 2.0, 0.1) == pytest.approx(8.0)
