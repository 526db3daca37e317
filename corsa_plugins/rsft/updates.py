"""The update of Eq. 2 (papers/model-merging-for-knowledge-editing.md), as it stands or by AdamW."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi

import torch
from torch import Tensor

from corsa_plugins.errors import CorsaError, SettingError
from corsa_plugins.rsft.settings import RSFTSettings
from corsa_plugins.rsft.weights import TrainedWeights

__all__ = ["NonFiniteLossError", "Updates", "learning_rate"]


class NonFiniteLossError(CorsaError, FloatingPointError):
    """A loss, its gradient or an updated weight is NaN or infinite; the message names the request and the step."""


def learning_rate(settings: RSFTSettings, t: int, total: int) -> float:
    """The rate of update number ``t``, counted from 0, of at most ``total`` = E * N * K.

    Algorithm 1 writes a constant one. The paper's runs were made in a trainer with a "maximum learning rate" (A.2),
    that is, a schedule: here a cosine to zero, in the counter t of lines 2 and 11, which steps not taken leave alone.
    """
    if settings.optimizer == "sgd":
        return settings.learning_rate
    return settings.learning_rate * 0.5 * (1 + cos(pi * t / total))


class Updates:
    """Applies updates to the weights and counts them.

    Args:
        weights: What trains.
        settings: With the optimiser.
        rate: The learning rate of an update by its number, counted from 0; Algorithm 1's is :func:`learning_rate`.
    """

    def __init__(self, weights: TrainedWeights, settings: RSFTSettings, rate: Callable[[int], float]) -> None:
        self.weights = weights
        self.rate = rate
        self.t = 0
        self.optimizer: torch.optim.Optimizer
        if settings.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(weights.masters, lr=settings.learning_rate)
        else:
            self.optimizer = torch.optim.AdamW(
                weights.masters, lr=settings.learning_rate, weight_decay=settings.weight_decay
            )
        # float16 has no room for small gradients: the loss is scaled up, by less once that overflows.
        half = any(parameter.dtype == torch.float16 for parameter in weights.parameters.values())
        self.loss_scale = 2.0**12 if half else 1.0

    def step(self, loss: Tensor) -> None:
        """theta <- theta - eta * gradient of ``loss`` (line 10), and t <- t + 1 (line 11).

        Raises:
            NonFiniteLossError: The gradient holds NaN or infinity. The weights are as they were.
        """
        for master, gradient in zip(self.weights.masters, self._gradients(loss), strict=True):
            master.grad = gradient
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.t)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.weights.publish()
        self.t += 1

    def _gradients(self, loss: Tensor) -> list[Tensor | None]:
        """By the masters and in their precision; None where the loss does not depend on one."""
        parameters = list(self.weights.parameters.values())
        if not loss.requires_grad:
            raise SettingError(f"{', '.join(self.weights.parameters)}: no answer depends on these; name other modules")
        while True:
            scaling = self.loss_scale > 1
            scale = loss.new_tensor(self.loss_scale)
            raw = torch.autograd.grad(loss, parameters, scale, retain_graph=scaling, allow_unused=True)
            gradients: list[Tensor | None] = [
                None if g is None else g.to(master.dtype).div_(self.loss_scale) if scaling else g.to(master.dtype)
                for g, master in zip(raw, self.weights.masters, strict=True)
            ]
            if all(g is None or bool(torch.isfinite(g).all()) for g in gradients):
                return gradients
            if not scaling:
                raise NonFiniteLossError("the gradient is not finite (NaN or infinity)")
            self.loss_scale /= 2
