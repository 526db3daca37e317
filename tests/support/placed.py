"""A model in parts: blocks on disk and one in main memory, from a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from corsa_plugins.model.loading import load_model
from corsa_plugins.model.placement import Placement
from corsa_plugins.model.stored import save_model


def device_map(model: Any, kept: int = 1) -> dict[str, int | str]:
    """Of a Llama: everything with weights on disk, but block ``kept`` and the norm."""
    blocks = {f"model.layers.{i}": "cpu" if i == kept else "disk" for i in range(model.config.num_hidden_layers)}
    return {"model.embed_tokens": "disk", "lm_head": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu", **blocks}


def in_parts(model: Any, tokenizer: Any, folder: Path, kept: int = 1, **settings: Any) -> Any:
    """The model, saved to ``folder`` and loaded from it in parts, as :func:`device_map` has them."""
    if not folder.exists():
        save_model(model, tokenizer, folder)
    return load_model(folder, device=Placement(device_map(model, kept)), **settings)[0]


@contextmanager
def weights_kept(whole: Any) -> Iterator[set[str]]:
    """Names of the linear maps of ``whole`` whose weights are kept for a gradient within the block, by any model."""
    weights = {name: p.detach().clone() for name, p in whole.named_parameters() if name.endswith("_proj.weight")}
    kept: set[str] = set()

    def note(tensor: Tensor) -> Tensor:
        for name, weight in weights.items():
            if any(given.shape == tensor.shape and torch.equal(given, tensor) for given in (weight, weight.T)):
                kept.add(name)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield kept
