"""A model in parts: blocks on disk and one in main memory, from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from corsa_plugins.model.loading import load_model
from corsa_plugins.model.placement import Placement
from corsa_plugins.model.stored import save_model


def device_map(model: Any, kept: int = 1) -> dict[str, int | str]:
    """Of a Llama: everything with weights on disk, but block ``kept`` and the norm."""
    blocks = {f"model.layers.{i}": "cpu" if i == kept else "disk" for i in range(model.config.num_hidden_layers)}
    return {"model.embed_tokens": "disk", "lm_head": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu", **blocks}


def in_parts(model: Any, tokenizer: Any, folder: Path, **settings: Any) -> Any:
    """The model, saved to ``folder`` and loaded from it in parts."""
    if not folder.exists():
        save_model(model, tokenizer, folder)
    return load_model(folder, device=Placement(device_map(model)), **settings)[0]
