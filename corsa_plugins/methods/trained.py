"""Weights of the model itself that a method trains: kept by update, and put back at the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

__all__ = ["TrainedInPlace"]

_WEIGHTS = "weights.safetensors"


class TrainedInPlace:
    """Parameters of a model, with a copy in main memory of what they were.

    Args:
        parameters: By name.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self._originals = {name: p.detach().to("cpu", copy=True) for name, p in self.parameters.items()}

    def save(self, folder: Path) -> None:
        """Write them as they are into the folder of an update."""
        from safetensors.torch import save_file

        save_file({name: p.detach().cpu().contiguous() for name, p in self.parameters.items()}, folder / _WEIGHTS)

    def load(self, folder: Path) -> None:
        """Make them what was written into the folder of an update."""
        from safetensors.torch import load_file

        self._put(load_file(folder / _WEIGHTS))

    def put_back(self) -> None:
        """Make them what they were, bit for bit."""
        self._put(self._originals)

    @torch.no_grad()
    def _put(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])
