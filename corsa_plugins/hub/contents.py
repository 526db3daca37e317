"""What of a folder, or of a file, goes to the Hub, and under which names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from corsa_plugins.data.reading import read_requests
from corsa_plugins.errors import CorsaError
from corsa_plugins.manifest import check_folder
from corsa_plugins.paths import user_path

__all__ = ["CARD", "Contents", "ContentsError", "Kind", "contents_of"]

CARD = "README.md"

_ADAPTER, _MODEL, _STATE = "adapter_config.json", "config.json", "state.json"
_UNFILLED = "[More Information Needed]"
_BESIDE = ("report.json", "facts.jsonl")
"""Of the folder of an edit, beside its parts."""


class ContentsError(CorsaError, ValueError):
    """A folder or a file that holds nothing for the Hub."""


class Kind(StrEnum):
    """What there is."""

    ADAPTER = "LoRA adapter"
    MODEL = "edited model"
    STATE = "edit state"
    STORE = "edits kept as text"
    REQUESTS = "edit requests"

    @property
    def repository(self) -> str:
        """Of which type its repository is: ``"model"`` or ``"dataset"``."""
        return "dataset" if self is Kind.REQUESTS else "model"


@dataclass(frozen=True)
class Contents:
    """What goes to the Hub.

    Attributes:
        path: The folder, or the file of requests.
        kind: Of what is at the root of the repository.
        files: By their names in the repository, without the card; a model, or else an adapter, is at the root, where
            ``from_pretrained`` looks for it, an edit state that comes with it under ``state/``.
    """

    path: Path
    kind: Kind
    files: dict[str, Path]

    @property
    def card(self) -> Path | None:
        """The folder's card; ``None``: there is none, or one that a tool left to be filled in."""
        card = self.path / CARD
        return card if card.is_file() and _UNFILLED not in card.read_text(encoding="utf-8") else None

    @property
    def state(self) -> Path | None:
        """``state.json`` of the edit state among them."""
        return self.files.get(_STATE) or self.files.get(f"state/{_STATE}")


def contents_of(path: str | os.PathLike[str]) -> Contents:
    """What of a folder, or a file of requests, goes to the Hub; what has a manifest is compared with it.

    Args:
        path: A folder of ``corsa edit``, ``corsa export``, ``corsa train`` or ``corsa merge``, any model's or PEFT
            adapter's, an edit state's; or a file of edit requests, JSON Lines.

    Raises:
        ContentsError: It is none of these.
        DamagedError: A file is not what was written.
        RequestError: The requests cannot be used.
    """
    root = user_path(path)
    if root.is_file():
        read_requests(root)
        return Contents(root, Kind.REQUESTS, {"requests.jsonl": root})
    if not root.is_dir():
        raise ContentsError(f"{root}: no such folder or file (looked in {Path.cwd()})")
    for name, kind in ((_ADAPTER, Kind.ADAPTER), (_MODEL, Kind.MODEL), (_STATE, Kind.STATE)):
        if (root / name).is_file():
            return Contents(root, kind, dict(_files(root)))
    return _of_edit(root)


def _of_edit(root: Path) -> Contents:
    """The folder of an edit: a model or an adapter at the root of the repository, the rest under its own names."""
    parts = {
        "model": (_MODEL, Kind.MODEL),
        "adapter": (_ADAPTER, Kind.ADAPTER),
        "state": (_STATE, Kind.STATE),
    }
    there = {name: kind for name, (file, kind) in parts.items() if (root / name / file).is_file()}
    beside = {name: root / name for name in _BESIDE if (root / name).is_file()}
    if not there and "facts.jsonl" not in beside:
        raise ContentsError(
            f"{root} holds no model ({_MODEL}), no adapter ({_ADAPTER}) and no edit state ({_STATE}): name the folder "
            "that corsa edit, corsa export, corsa train or corsa merge wrote, or a file of edit requests"
        )
    first = next((name for name in ("model", "adapter") if name in there), None)
    files = dict(beside)
    for name in there:
        files |= dict(_files(root / name, "" if name == first else f"{name}/"))
    return Contents(root, there[first] if first else there.get("state", Kind.STORE), files)


def _files(folder: Path, prefix: str = "") -> Iterator[tuple[str, Path]]:
    """All but the card, the checkpoints of a training, and what is hidden."""
    check_folder(folder)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.is_file() and not hidden and name.as_posix() != CARD and not name.parts[0].startswith("checkpoint-"):
            yield prefix + name.as_posix(), path
