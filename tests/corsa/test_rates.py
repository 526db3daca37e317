"""A learning rate found by trying, which leaves nothing behind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from corsa_plugins.corsa.rates import STEPS, RateTest, rates_tried
from corsa_plugins.errors import SettingError


def valley(width: float) -> tuple[nn.Parameter, list[float]]:
    """A parameter that lies ``width`` from where its loss, the distance squared, is least."""
    return nn.Parameter(torch.full((3,), width, dtype=torch.float64)), []


@pytest.mark.parametrize("width", [2e-3, 2e-2])
def test_the_rate_follows_how_far_there_is_to_go(width: float) -> None:
    """Adam's first steps have the size of the rate: four of them go half the way in gain at a tenth of it or so."""
    parameter, _ = valley(width)
    tried = rates_tried([parameter], lambda: (parameter**2).sum())
    assert 0.05 * width < tried.chosen < 0.25 * width
    assert f"learning_rate {tried.chosen:g}" in tried.text


def test_parameters_and_gradients_are_what_they_were_also_after_an_error() -> None:
    parameter, calls = valley(0.01)
    other = nn.Parameter(torch.ones(2))
    parameter.grad = torch.full_like(parameter, 7.0)
    values, grad = parameter.detach().clone(), parameter.grad

    def loss(failing: int) -> Tensor:
        calls.append(1.0)
        if len(calls) == failing:
            raise KeyboardInterrupt
        return (parameter**2).sum()

    rates_tried([parameter, other], lambda: loss(-1))
    assert torch.equal(parameter, values)
    assert parameter.grad is grad
    assert other.grad is None
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        rates_tried([parameter, other], lambda: loss(4))
    assert torch.equal(parameter, values)
    assert parameter.grad is grad


def test_it_stops_where_the_loss_is_no_better_than_before() -> None:
    parameter, _ = valley(1e-4)
    rates = [rate for rate, _ in rates_tried([parameter], lambda: (parameter**2).sum()).after]
    assert max(rates) < 6.4e-3


def test_a_loss_that_nothing_lowers_is_refused() -> None:
    with pytest.raises(SettingError, match=rf"lowers the loss of 2 in {STEPS} steps: set learning_rate by hand"):
        RateTest(2.0, ((1e-4, 2.0), (1e-3, float("nan")))).chosen  # noqa: B018
