"""Weights of the model itself that a method trains: kept by update, and put back at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from corsa_plugins.methods.history import HISTORY, write_history

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["TrainedInPlace", "TrainedSession"]

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


class TrainedSession:
    """One model on its way through updates that train some of its weights in place; methods add ``update``.

    Attributes:
        model: As it is now.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, parameters: Mapping[str, nn.Parameter]
    ) -> None:
        self.model = model
        self._tokenizer = tokenizer
        self._trained = TrainedInPlace(parameters)

    def keep(self, records: Sequence[dict[str, Any]], folder: Path) -> None:
        """Write what was trained, and its history where there is one, into the folder of an update."""
        if records:
            write_history(records, folder / HISTORY)
        self._trained.save(folder)

    def restore(self, folder: Path) -> None:
        """Make the model what the update of that folder left."""
        self._trained.load(folder)

    def close(self) -> None:
        """Make it what it was before the first update, bit for bit."""
        self._trained.put_back()
