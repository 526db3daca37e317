"""One update of a model by any method, and what it leaves on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corsa_plugins.data.requests import EditRequest, input_key
from corsa_plugins.files import atomic_directory
from corsa_plugins.manifest import checksums, write_manifest
from corsa_plugins.methods.effect import read_effect
from corsa_plugins.methods.spec import STORE, Change, Method
from corsa_plugins.model.bases import BASE, base_of
from corsa_plugins.model.stored import check_target, save_model
from corsa_plugins.outputs import disk_errors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["ADAPTER", "MODEL", "SavedUpdate", "save_update"]

MODEL, ADAPTER = "model", "adapter"
"""Names in the folder of an update."""


@dataclass(frozen=True)
class SavedUpdate:
    """What an update left in its folder, beside what its method itself keeps of it (a history, a report).

    Attributes:
        model: The edited model and its tokenizer; ``None`` where the model's own weights are as they were.
        adapter: A PEFT adapter, of ``model`` if there is one, else of the model that was edited; ``None`` where there
            is none, for instance because the model gave every new answer already.
        store: The edits as text, of a method that keeps them beside the model; else ``None``.
        effect: How much of it was taken, in a sentence; ``None`` where the method does not say.
    """

    model: Path | None
    adapter: Path | None
    store: Path | None = None
    effect: str | None = None


def save_update(
    method: Method,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    output: str | os.PathLike[str],
    *,
    changes: Sequence[Change] = ("weights",),
    seed: int = 0,
    card: Callable[[Path], object] | None = None,
) -> SavedUpdate:
    """Update a model by a method, and save what came of it, completely or not at all.

    A manifest beside it says by which method, settings and seed, of which model and requests, and has the checksums of
    the files beside it; what is in folders has manifests of its own.

    Args:
        method: Of :func:`corsa_plugins.methods.registry.make_method`, for instance.
        model: A causal language model without an adapter; it is given back as it was.
        tokenizer: Its tokenizer.
        requests: What to change; at least one.
        output: The folder.
        changes: What the method changes, as its spec says (:attr:`corsa_plugins.methods.spec.MethodSpec.changes`).
        seed: Of the update.
        card: Called with the folder when everything else is in it, and before it is ``output``.

    Raises:
        CorsaError: As raised by the method; or the folder is one that the model is read from. Nothing is written.
        OSError: The folder cannot be written to.
    """
    check_target(model, output)
    base = base_of(model)
    session = method.start(model, tokenizer, seed=seed)
    try:
        with disk_errors(output), atomic_directory(output, card) as folder:
            session.update(requests, folder)
            adapted: Any = session.model
            is_adapted = hasattr(adapted, "peft_config")
            if is_adapted and not (folder / ADAPTER).is_dir():
                adapted.save_pretrained(folder / ADAPTER)
            if is_adapted:
                write_manifest(folder / ADAPTER)
            if "weights" in changes:
                own = adapted.unload() if is_adapted else adapted  # its own modules again, without the adapter
                save_model(own, tokenizer, folder / MODEL)
            beside = [file.name for file in folder.iterdir() if file.is_file()]
            made = {"method": method.describe(), "seed": seed, **input_key(requests)}
            known = {} if base is None else {BASE: base.as_dict()}
            write_manifest(folder, checksums(folder, sorted(beside)), **made, **known)
    finally:
        session.close()
    output = Path(output)
    return SavedUpdate(
        model=output / MODEL if "weights" in changes else None,
        adapter=output / ADAPTER if is_adapted else None,
        store=output / STORE if "store" in changes else None,
        effect=read_effect(output).get("text"),
    )
