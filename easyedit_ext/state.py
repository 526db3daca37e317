"""Saving the AlphaEdit+ edits in force on a model, and going on from them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from corsa_plugins.alphaedit import EditState
from corsa_plugins.errors import CorsaError
from easyedit_ext.alphaedit_plus import known_state, put_in_force
from easyedit_ext.records import AppliedEdit, has_record, record_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

__all__ = ["load", "save"]


def save(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write the AlphaEdit+ edits in force on a model to a folder, completely or not at all.

    Written are the edited layers' weights from before, and each edit's keys, update, settings and report; for
    :func:`load`, ``corsa edit --state``, or :meth:`corsa_plugins.alphaedit.EditState.load`. The edited model itself is
    saved as any other, with ``model.save_pretrained``.

    Raises:
        CorsaError: There are none.
    """
    state = known_state(model) if has_record(model) else None
    if state is None or not state.batches:
        raise CorsaError(
            "there are no AlphaEdit+ edits in force on this model to save: edit it with sequential_edit=True, so that "
            "they stay (R-SFT has no state beside the weights)"
        )
    return state.save(path)


def load(model: PreTrainedModel, path: str | os.PathLike[str]) -> None:
    """Go on from edits that :func:`save` wrote, on the model they were made on, edited or not.

    A model with its original weights gets the edits; the next AlphaEdit+ edit remembers them.

    Raises:
        StateError: The folder holds no state, or one of another model. Nothing is changed.
    """
    state = put_in_force(model, EditState.load(path))
    record_of(model).state = state
    record_of(model).edits = [AppliedEdit("AlphaEditPlus", batch.requests, batch.report) for batch in state.batches]
