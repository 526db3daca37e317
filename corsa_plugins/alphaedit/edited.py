"""An edited model from what ``corsa edit`` wrote."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from corsa_plugins.alphaedit.editor import AlphaEditor
from corsa_plugins.alphaedit.state import EditState
from corsa_plugins.model.loading import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["load_edited"]


def load_edited(
    model: str | os.PathLike[str],
    edited: str | os.PathLike[str],
    *,
    device: str | None = None,
    dtype: str = "auto",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load an edited model: a model like any other, or what ``corsa edit`` wrote.

    Args:
        model: The model that was edited; used where ``edited`` holds the edits alone.
        edited: A model, or a folder written by ``corsa edit``, with or without ``--delta-only``.
        device: As for :func:`load_model`.
        dtype: As for :func:`load_model`; edits alone go onto a model in the precision they were made in.

    Raises:
        LoadingError, SettingError: As for :func:`load_model`.
        StateError: The edits are of another model, or were made in another precision.
    """
    folder = Path(edited).expanduser()
    if (folder / "model" / "config.json").is_file():
        return load_model(folder / "model", device=device, dtype=dtype)
    state_folder = next((place for place in (folder / "state", folder) if (place / "state.json").is_file()), None)
    if state_folder is None or (folder / "config.json").is_file():
        return load_model(edited, device=device, dtype=dtype)
    state = EditState.load(state_folder)
    loaded, tokenizer = load_model(model, device=device, dtype=dtype)
    if state.batches:
        AlphaEditor(loaded, tokenizer, None, state.batches[-1].settings, state=state).apply()
    return loaded, tokenizer
