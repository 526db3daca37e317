"""The perturbation of sharpness-aware minimisation (papers/corsa.md, Eq. 7; Foret et al., 2021)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["perturbed"]


@contextmanager
def perturbed(parameters: Sequence[Tensor], direction: Sequence[Tensor], scale: float) -> Iterator[None]:
    """Within the block the parameters stand at ``phi + scale * direction``; afterwards at phi again, bit for bit.

    phi comes back from a copy: subtracting what was added would leave rounding behind, a little more every step. It
    comes back whatever the block raises, Ctrl-C included.

    Args:
        parameters: the tensors phi, changed in place.
        direction: same shapes and order.
        scale: ``rho / (||direction|| + eps)`` makes a perturbation of norm rho.
    """
    saved = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter, step in zip(parameters, direction, strict=True):
                parameter.add_(step, alpha=scale)
        torch.clear_autocast_cache()  # an autocast around the whole step would go on with copies of phi
        yield
    finally:
        with torch.no_grad():
            for parameter, original in zip(parameters, saved, strict=True):
                parameter.copy_(original)
        torch.clear_autocast_cache()
