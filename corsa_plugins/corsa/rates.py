"""A learning rate found by trying: a few steps at each of a range of rates, every time from the same parameters.

Adam's step has the size of the rate whatever the gradient's, so that the rate that suits is a property of the model and
its adapter: too little moves nothing, too much overshoots. A few steps on some of the facts show both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor, nn

from corsa_plugins.errors import SettingError

__all__ = ["RATES", "RateTest", "rates_tried"]

RATES = (3e-5, 1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3, 6.4e-3)
"""What is tried, in this order, until the loss is no better than before any step."""

STEPS = 4
_OF_BEST = 0.5
"""The smallest rate is taken that brings this share of the best rate's gain: training goes on for many more steps, and
at the best rate of four the next ones overshoot."""
_LEAST = 0.02  # of the loss: a smaller gain shows nothing


@dataclass(frozen=True)
class RateTest:
    """What trying came to.

    Attributes:
        before: The loss before any step.
        after: (rate, loss after the steps at it), of each rate that was tried.
    """

    before: float
    after: tuple[tuple[float, float], ...]

    @property
    def chosen(self) -> float:
        """The smallest rate that brings half of what the best one does.

        Raises:
            SettingError: No rate lowers the loss.
        """
        gains = [(rate, self.before - loss if isfinite(loss) else -1.0) for rate, loss in self.after]
        best = max(gain for _, gain in gains)
        if not best > _LEAST * abs(self.before):
            raise SettingError(
                f"find_learning_rate: none of the rates {', '.join(f'{rate:g}' for rate, _ in gains)} lowers the loss "
                f"of {self.before:.3g} in {STEPS} steps: set learning_rate by hand, with find_learning_rate false"
            )
        return next(rate for rate, gain in gains if gain >= _OF_BEST * best)

    @property
    def text(self) -> str:
        """What was chosen and why, in a sentence."""
        tried = ", ".join(f"{rate:g}: {loss:.3g}" for rate, loss in self.after)
        return (
            f"learning_rate {self.chosen:g}, the smallest of those tried that brings half of the best one's gain in "
            f"{STEPS} steps (loss before {self.before:.3g}; after, {tried})"
        )


def rates_tried(
    parameters: Sequence[nn.Parameter],
    loss: Callable[[], Tensor],
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    rates: Sequence[float] = RATES,
) -> RateTest:
    """Try rates, by AdamW without weight decay; the parameters and their gradients are afterwards what they were, bit
    for bit, also where it raises.

    Args:
        parameters: What is trained.
        loss: Of the parameters as they are; a scalar with its graph.
        betas: Of AdamW.
        rates: What to try, from the smallest to the largest.
    """
    saved = [(p.detach().clone(), p.grad) for p in parameters]

    def put_back() -> None:
        with torch.no_grad():
            for parameter, (value, grad) in zip(parameters, saved, strict=True):
                parameter.copy_(value)
                parameter.grad = grad

    def now() -> float:
        with torch.no_grad():
            return float(loss())

    after: list[tuple[float, float]] = []
    try:
        before = now()
        for rate in rates:
            optimizer = torch.optim.AdamW(parameters, lr=rate, betas=betas, weight_decay=0.0)
            for _ in range(STEPS):
                grads = torch.autograd.grad(loss(), parameters, allow_unused=True)
                for parameter, grad in zip(parameters, grads, strict=True):
                    parameter.grad = grad
                optimizer.step()
            after.append((rate, now()))
            put_back()
            if not after[-1][1] < before and len(after) > 1:
                break
    finally:
        put_back()
    return RateTest(before, tuple(after))
