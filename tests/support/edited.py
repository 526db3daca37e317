"""Models that differ from a base, on disk and in memory."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from safetensors.torch import load_file


def changed(model, seed, where="", scale=0.05, dtype=None):
    """A copy of ``model`` with noise on the parameters whose names contain ``where``."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if where in name:
                noise = torch.randn(parameter.shape, generator=generator) * scale
                parameter.copy_((parameter.float() + noise).to(parameter.dtype))
    return other


def stored(path):
    """All tensors of a saved model."""
    tensors = {}
    for file in sorted(Path(path).glob("*.safetensors")):
        tensors.update(load_file(file))
    for file in sorted(Path(path).glob("*.bin")):
        tensors.update(torch.load(file))
    return tensors
