"""The plumbing of a training step: from a batch as TRL makes it to what Algorithm 1 asks for, and from its update to
the gradients that the optimizer reads.

A batch of B pairs has 2B rows, the chosen first; see :mod:`corsa_plugins.corsa.objective`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from corsa_plugins.corsa import TaskGradients, sft_loss
from corsa_plugins.model.borrowing import remember_random_state

__all__ = [
    "accumulate",
    "average_over_processes",
    "chosen_rows",
    "completion_mask",
    "is_noisy",
    "labels",
    "lora_parameters",
    "model_inputs",
    "sft_of_rows",
    "with_the_same_noise",
]

_OF_THE_LOSS = {"completion_mask", "ref_chosen_logps", "ref_rejected_logps"}


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The trainable parameters, raised to float32 where they are coarser."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        if parameter.dtype in (torch.float16, torch.bfloat16):
            # A perturbation of norm 0.05 over millions of parameters is below half a bfloat16 step in each of them:
            # adding it would change nothing. DPOTrainer rounds the adapters of quantized models to bfloat16.
            parameter.data = parameter.data.float()
    return trainable


# --- A batch ---


def model_inputs(inputs: dict[str, Any]) -> dict[str, Any]:
    """What of a batch goes to the model."""
    return {name: value for name, value in inputs.items() if name not in _OF_THE_LOSS} | {"use_cache": False}


def labels(inputs: dict[str, Any]) -> Tensor:
    """Token ids (R, T), -100 off the completions."""
    return inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)


def completion_mask(inputs: dict[str, Any]) -> Tensor:
    """(R, T - 1), non-zero where the token that is predicted belongs to a completion."""
    return inputs["completion_mask"][:, 1:]


def chosen_rows(inputs: dict[str, Any]) -> dict[str, Any]:
    """The batch without its rejected rows."""
    rows = inputs["input_ids"].shape[0]
    return {k: v[: rows // 2] if isinstance(v, Tensor) and len(v) == rows else v for k, v in inputs.items()}


def sft_of_rows(log_probs: Tensor, mask: Tensor, paired: bool) -> Tensor:
    """L_sft of a batch, nats per token; ``paired`` says that its second half is the rejected rows."""
    if paired:
        return sft_loss(log_probs, mask)
    return -log_probs[mask.bool()].mean()


# --- Two looks at it ---


def is_noisy(model: nn.Module, neftune_noise_alpha: float | None) -> bool:
    """Whether two forward passes over a batch draw random numbers: dropout, or NEFTune's noise on the embeddings."""
    return neftune_noise_alpha is not None or any(
        isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()
    )


def with_the_same_noise(gradients: Callable[[], TaskGradients]) -> Callable[[], TaskGradients]:
    """Both looks of a step with the same dropout masks and NEFTune noise, so that they differ by the perturbation."""
    put_back: list[Callable[[], None]] = []

    def evaluate() -> TaskGradients:
        if put_back:
            put_back[0]()
        else:
            put_back.append(remember_random_state())
        return gradients()

    return evaluate


# --- Its update ---


def accumulate(parameters: Sequence[nn.Parameter], update: Sequence[Tensor], share: float) -> None:
    """Add ``share`` of the update to the parameters' gradients. May overwrite the update."""
    for parameter, gradient in zip(parameters, update, strict=True):
        if parameter.grad is None:
            parameter.grad = gradient.mul_(share)
        else:
            parameter.grad.add_(gradient, alpha=share)


def average_over_processes(parameters: Sequence[nn.Parameter], accelerator: Accelerator) -> None:
    """What DDP's hooks would have done: one all-reduce over all gradients, as one buffer."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = accelerator.reduce(torch.cat([gradient.reshape(-1) for gradient in gradients]), reduction="mean")
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
