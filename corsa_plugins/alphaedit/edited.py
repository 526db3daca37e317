"""Edits on disk, as ``corsa edit`` leaves them: an edited model, its edit state, and a report."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from corsa_plugins.alphaedit.auto import AUTO, Trial, settings_for
from corsa_plugins.alphaedit.editor import AlphaEditor, PreservedKeys
from corsa_plugins.alphaedit.report import EditReport
from corsa_plugins.alphaedit.settings import AlphaEditSettings
from corsa_plugins.alphaedit.state import EditState
from corsa_plugins.errors import SettingError
from corsa_plugins.files import atomic_directory
from corsa_plugins.manifest import checksums, write_manifest
from corsa_plugins.model.bases import BASE
from corsa_plugins.model.loading import load_model
from corsa_plugins.model.placement import Where
from corsa_plugins.model.stored import check_target, save_model
from corsa_plugins.outputs import disk_errors
from corsa_plugins.paths import user_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from corsa_plugins.alphaedit.statistics.statistics import KeyStatistics
    from corsa_plugins.data.requests import EditRequest, Probe

__all__ = [
    "MODEL",
    "STATE",
    "change_edits",
    "edit_settings",
    "editor_with",
    "last_settings",
    "load_edited",
    "save_edited",
    "settings_on",
    "state_folder",
    "whole_model",
]

MODEL, STATE, REPORT = "model", "state", "report.json"
"""Names in the folder of an edit."""


def edit_settings(
    source: str | os.PathLike[str] | None,
    layers: Sequence[int] | None = None,
    earlier: EditState | None = None,
    kind: type[AlphaEditSettings] = AlphaEditSettings,
) -> AlphaEditSettings | Literal["auto"]:
    """The settings to edit with: those that are given, else those of the last edit in force, else ``"auto"``.

    Args:
        source: A YAML file, a preset's name, or ``"auto"``: chosen for the model by edits on trial.
        layers: Blocks to edit instead of those of ``source``.
        earlier: Edits in force.
        kind: Whose defaults and presets ``source`` stands on.

    Raises:
        SettingError: The settings cannot be read.
    """
    if source is None and earlier is not None and earlier.requests:
        settings = last_settings(earlier)
    elif source is None or source == AUTO:
        return "auto"
    else:
        settings = kind.load(source)
    return replace(settings, layers=tuple(layers)) if layers else settings


# Seven parameters: a model's, and what a choice goes by.
def settings_on(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    statistics: KeyStatistics,
    settings: AlphaEditSettings | Literal["auto"],
    requests: Sequence[EditRequest] = (),
    layers: Sequence[int] = (),
    report: Callable[[Trial], None] | None = None,
) -> AlphaEditSettings:
    """The settings themselves: those of :func:`edit_settings`; for ``"auto"``, those chosen for the model.

    Arguments and errors are those of :func:`corsa_plugins.alphaedit.auto.settings_for`.
    """
    if not isinstance(settings, str):
        return settings
    return settings_for(model, tokenizer, statistics, requests, layers=layers, report=report).settings


def last_settings(state: EditState | None) -> AlphaEditSettings:
    """The settings of the last edit in force; where there are adopted changes alone, of their layers.

    Raises:
        SettingError: There is none.
    """
    if state is None or not state.batches:
        raise SettingError("the edit state has no batch in force: there is nothing to revert")
    edits = [batch for batch in state.batches if batch.requests]
    return (edits or state.batches)[-1].settings


def state_folder(folder: Path) -> Path:
    """The edit state in a folder that ``corsa edit`` wrote, or that is one."""
    return folder / STATE if (folder / STATE).is_dir() else folder


def editor_with(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    statistics: PreservedKeys | None,
    settings: AlphaEditSettings,
    state: EditState | None,
) -> AlphaEditor:
    """An editor on a model with the edits of ``state`` in force, whether or not the model had them.

    Raises:
        StateError: The edits are of another model, or the weights are none that the state knows.
    """
    editor = AlphaEditor(model, tokenizer, statistics, settings, state=state)
    if state is not None:
        editor.apply()
    return editor


def change_edits(
    editor: AlphaEditor,
    requests: Sequence[EditRequest] = (),
    *,
    revert: Sequence[str] = (),
    name: str | None = None,
    keep: Sequence[Probe] = (),
    progress: bool = False,
) -> EditReport | None:
    """Take batches of edits out again, then make another one.

    Args:
        editor: Changed in place, as its model is.
        requests: The new batch; ``None`` is made of no requests.
        revert: Names of batches; ``"all"`` for every one.
        name, keep, progress: As for :meth:`AlphaEditor.edit`.

    Returns:
        The report of the new batch.

    Raises:
        CorsaError: As :meth:`AlphaEditor.revert` and :meth:`AlphaEditor.edit` raise it.
    """
    for batch in revert:
        editor.revert_all() if batch == "all" else editor.revert(batch)
    return editor.edit(requests, name=name, keep=keep, progress=progress) if requests else None


def save_edited(
    editor: AlphaEditor,
    output: str | os.PathLike[str],
    report: EditReport | None = None,
    *,
    whole: bool = True,
    beside: Callable[[Path], object] | None = None,
    card: Callable[[Path], object] | None = None,
) -> None:
    """Write what :func:`load_edited` reads, completely or not at all.

    Args:
        editor: With the edits in force.
        output: The folder.
        report: Of the last edit, to be kept with its settings.
        whole: The model too, and not the edits alone.
        beside: Writes what else belongs into the folder, which it is given.
        card: Likewise, when everything else is in it.

    Raises:
        SettingError: The model is to be written, and its edits lie beside quantised weights; or the folder is one that
            the model is read from.
        OSError: The folder cannot be written to.
    """
    check_target(editor.model, output)
    with disk_errors(output), atomic_directory(output, card) as folder:
        editor.state.save(folder / STATE)
        if whole:
            save_model(editor.model, editor.tokenizer, folder / MODEL)
        if beside is not None:
            beside(folder)
        if report:
            content = {"settings": editor.settings.as_dict(), **report.as_dict()}
            (folder / REPORT).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
        written = [file.name for file in folder.iterdir() if file.is_file()]
        settings = editor.settings.as_dict()
        base = editor.state.fingerprint.as_dict()
        write_manifest(folder, checksums(folder, sorted(written)), settings=settings, **{BASE: base})


def whole_model(edited: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The edited model itself: in a folder written by ``corsa edit`` the model that is there, else what is given.

    Raises:
        SettingError: The folder holds the edits alone.
    """
    folder = user_path(edited)
    if _has_whole_model(folder):
        return folder / MODEL
    if (state_folder(folder) / "state.json").is_file() and not (folder / "config.json").is_file():
        raise SettingError(
            f"{folder} holds the edits alone: the whole edited model is needed, as corsa edit writes it without "
            "--delta-only"
        )
    return edited


def _has_whole_model(folder: Path) -> bool:
    """Whether a model was written into it, be it whole or not: what lacks a file is not taken for the edits alone."""
    return (folder / MODEL).is_dir() and not (folder / "config.json").is_file()


def load_edited(
    model: str | os.PathLike[str],
    edited: str | os.PathLike[str],
    *,
    device: Where = None,
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
    folder = user_path(edited)
    if _has_whole_model(folder):
        return load_model(folder / MODEL, device=device, dtype=dtype)
    edits = state_folder(folder)
    if not (edits / "state.json").is_file() or (folder / "config.json").is_file():
        return load_model(edited, device=device, dtype=dtype)
    state = EditState.load(edits)
    loaded, tokenizer = load_model(model, device=device, dtype=dtype)
    if state.batches:
        editor_with(loaded, tokenizer, None, state.batches[-1].settings, state)
    return loaded, tokenizer
