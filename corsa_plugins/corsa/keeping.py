"""What should stay, held by its divergence from what it was: an option beside Algorithm 1.

At n positions, where the model said p before the training and says q now, the penalty is::

    weight * max(1, KL / tolerance) * KL,        KL = mean over the positions of sum_v p_v (log p_v - log q_v)

with the maximum a number, not differentiated. Within the tolerance the pull is constant; past it, it grows as the
divergence does, so that no weight has to be found for a model and its learning rate: a trust region without a state.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["divergence", "keep_gradient", "keep_penalty", "pressure"]


def divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(reference || current) at each position, (n,) in nats.

    Args:
        logits: (n, V), the current ones; the gradient passes.
        reference: (n, V) log-probabilities.
    """
    return (reference.exp() * (reference - logits.log_softmax(-1))).sum(-1)


def pressure(kl: float, weight: float, tolerance: float) -> float:
    """The factor of the divergence's gradient."""
    return weight * max(1.0, kl / tolerance)


def keep_penalty(kl: Tensor, weight: float, tolerance: float) -> tuple[Tensor, float]:
    """The penalty, whose gradient passes, and the mean divergence; arguments as for :func:`keep_gradient`."""
    mean = kl.mean()
    value = float(mean.detach())
    return mean * pressure(value, weight, tolerance), value


def keep_gradient(
    kl: Tensor, parameters: Sequence[Tensor], weight: float, tolerance: float
) -> tuple[list[Tensor], float]:
    """The penalty's gradient, one tensor per parameter, and the mean divergence.

    Args:
        kl: (n,), from :func:`divergence`.
        parameters: What it is taken by.
        weight: Within the tolerance.
        tolerance: Nats per position past which the weight grows.
    """
    penalty, value = keep_penalty(kl, weight, tolerance)
    grads = torch.autograd.grad(penalty, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)], value
