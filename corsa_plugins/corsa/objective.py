"""The two losses of CoRSA as functions of per-token log-probabilities (papers/corsa.md, Eq. 4 and section 3).

A batch holds B pairs: rows ``0..B-1`` are the chosen sequences (the new answers y+), rows ``B..2B-1`` the rejected
ones (the outdated answers y-). ``log_probs`` has shape (2B, T) and is zero wherever ``mask`` (2B, T) is zero, that is,
everywhere but on completion tokens.

Both losses depend on the parameters only through ``log_probs``. Writing J for the Jacobian of ``log_probs`` by the
parameters, the gradient of either loss is J^T w with w = d loss / d log_probs, and w is cheap: no model is involved.
:func:`token_weights` computes it, and one forward pass serves both losses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from corsa_plugins.errors import CorsaError

__all__ = [
    "NonFiniteGradientError",
    "TokenWeights",
    "dpo_loss",
    "margin",
    "sequence_log_probs",
    "sft_loss",
    "token_weights",
]


class NonFiniteGradientError(CorsaError, FloatingPointError):
    """A loss or its gradient holds NaN or infinity. The parameters are as they were before the step."""


def sequence_log_probs(log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """Summed completion log-probabilities of the chosen and of the rejected rows, each of shape (B,), in nats."""
    chosen, rejected = log_probs.sum(dim=1).chunk(2)
    return chosen, rejected


def sft_loss(log_probs: Tensor, mask: Tensor) -> Tensor:
    """Mean negative log-likelihood over the completion tokens of the chosen rows, in nats per token (L_sft).

    Args:
        log_probs: (2B, T), or (B, T) when there are no rejected rows to tell apart: then pass ``mask`` of that shape.
        mask: same shape, non-zero on completion tokens. Only the first half of the rows counts.
    """
    chosen, chosen_mask = log_probs.chunk(2)[0], mask.chunk(2)[0].bool()
    return -chosen[chosen_mask].mean()


def dpo_loss(log_probs: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float = 0.1) -> Tensor:
    """Sigmoid DPO on summed completion log-probabilities (L_dpo; Rafailov et al., 2023, Eq. 7).

    Args:
        log_probs: (2B, T) under the policy.
        ref_chosen, ref_rejected: (B,) summed log-probabilities under the reference, the base model p_theta.
        beta: inverse temperature.
    """
    chosen, rejected = sequence_log_probs(log_probs)
    return -F.logsigmoid(beta * ((chosen - ref_chosen) - (rejected - ref_rejected))).mean()


def margin(log_probs: Tensor) -> Tensor:
    """m = log p(y+|x) - log p(y-|x) for each pair, shape (B,), in nats (papers/corsa.md, Eq. 1)."""
    chosen, rejected = sequence_log_probs(log_probs)
    return chosen - rejected


@dataclass(frozen=True)
class TokenWeights:
    """How the losses respond to each token's log-probability, and the losses themselves.

    Attributes:
        sft: (R, T) d L_sft / d log_probs.
        dpo: (R, T) d L_dpo / d log_probs, or None when DPO is switched off.
        sft_loss: scalar, nats per token.
        dpo_loss: scalar, or None.
    """

    sft: Tensor
    dpo: Tensor | None
    sft_loss: Tensor
    dpo_loss: Tensor | None


def token_weights(
    log_probs: Tensor, sft: Callable[[Tensor], Tensor], dpo: Callable[[Tensor], Tensor] | None
) -> TokenWeights:
    """Differentiate both losses by the log-probabilities alone.

    Args:
        log_probs: (R, T), from the model; its graph is not touched.
        sft, dpo: each maps a (R, T) tensor of log-probabilities to a scalar loss. Any differentiable loss will do.

    Raises:
        NonFiniteGradientError: a loss is NaN or infinite, or its derivative is.
    """
    leaf = log_probs.detach().requires_grad_()
    with torch.enable_grad():
        loss = sft(leaf)
        (sft_weights,) = torch.autograd.grad(loss, leaf)
        _require_finite("SFT", loss, sft_weights)
        if dpo is None:
            return TokenWeights(sft_weights, None, loss.detach(), None)
        preference = dpo(leaf)
        (dpo_weights,) = torch.autograd.grad(preference, leaf)
        _require_finite("DPO", preference, dpo_weights)
    return TokenWeights(sft_weights, dpo_weights, loss.detach(), preference.detach())


def _require_finite(name: str, loss: Tensor, weights: Tensor) -> None:
    if not bool(torch.isfinite(loss.detach() + weights.sum())):
        raise NonFiniteGradientError(f"The {name} loss is not finite (NaN or infinity)")
