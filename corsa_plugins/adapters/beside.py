"""Edits on disk where the weights of the base stay as they are, quantised: the state, and the adapter they are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from corsa_plugins.adapters.export import AdapterForm, export_state
from corsa_plugins.alphaedit import AlphaEditor
from corsa_plugins.alphaedit.edited import save_edited
from corsa_plugins.alphaedit.report import EditReport
from corsa_plugins.model.quantised import has_quantised_maps

__all__ = ["ADAPTER", "save_edits"]

ADAPTER = "adapter"
"""Name in the folder of an edit."""

_ANY_RANK = 2**31


def save_edits(
    editor: AlphaEditor,
    output: str | os.PathLike[str],
    report: EditReport | None = None,
    *,
    whole: bool = True,
    card: Callable[[Path], object] | None = None,
) -> str:
    """Write the folder of an edit: the edited model, or where its base is quantised, the edits as a LoRA adapter of it.

    Args:
        editor, output, report, card: As for :func:`~corsa_plugins.alphaedit.edited.save_edited`.
        whole: The model, or the adapter, too, and not the edits alone.

    Returns:
        What is there beside the edits: ``"model"``, ``"adapter"`` or nothing, ``""``.

    Raises:
        OSError, SettingError: It cannot be written; nothing is left of it.
    """
    if not whole or not has_quantised_maps(editor.model):
        save_edited(editor, output, report, whole=whole, card=card)
        return "model" if whole else ""
    if not editor.state.batches:
        save_edited(editor, output, report, whole=False, card=card)
        return ""

    def write(folder: Path) -> None:
        export_state(editor.state, folder / ADAPTER, form=AdapterForm(max_rank=_ANY_RANK))

    save_edited(editor, output, report, whole=False, beside=write, card=card)
    return ADAPTER
