"""A merge by scaled and pruned deltas, written down as a recipe for mergekit; mergekit itself is not needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["METHOD", "delta_recipe"]

METHOD = "scaled_pruned_delta"
"""What a recipe calls this merge (``merge_method: scaled_pruned_delta``), and mergekit_ext registers it as."""


def delta_recipe(
    base: str | Path,
    edited: str | Path,
    weight: float,
    density: float,
    *,
    adapter: str | Path | None = None,
    per_row: bool = False,
    prune_vectors: bool = True,
) -> dict[str, Any]:
    """The recipe of :func:`~corsa_plugins.merging.deltas.merge_deltas` for one edited model, as plain data.

    Args:
        base: The model before the edits: a text as mergekit reads it (``owner/name@revision``, ``model+adapter``), or
            the path of a folder, whatever is in its name.
        edited: The model after them, likewise.
        weight: What the delta is scaled by.
        density: Share of the delta to keep.
        adapter: Of the edited model, where that is a base and an adapter; as the models are given.
        per_row: See :func:`~corsa_plugins.merging.deltas.merge_deltas`; left out where it is the default.
        prune_vectors: Likewise.
    """
    shared = ({"per_row": True} if per_row else {}) | ({} if prune_vectors else {"prune_vectors": False})
    return {
        "merge_method": METHOD,
        "base_model": _reference(base),
        "models": [{"model": _reference(edited, adapter), "parameters": {"weight": weight, "density": density}}],
        **({"parameters": shared} if shared else {}),
    }


def _reference(model: str | Path, adapter: str | Path | None = None) -> str | dict[str, Any]:
    """A model as mergekit takes it: in a text, ``+`` begins an adapter and ``@`` a revision."""
    parts = {"model": model, **({} if adapter is None else {"lora": adapter})}
    if not any(isinstance(part, Path) and {"+", "@"} & set(str(part)) for part in parts.values()):
        return "+".join(map(str, parts.values()))
    return {name: {"path": str(part)} if isinstance(part, Path) else str(part) for name, part in parts.items()}
