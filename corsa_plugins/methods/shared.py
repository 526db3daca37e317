"""Trainings that several methods begin with, made once.

R-SFT and R-SFT merged by mergekit, say, train the same weights of the same model on the same requests before they part.
Where they are given one folder for it, the first to come trains, and the others take what it left.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from corsa_plugins.files import atomic_directory, sole_use
from corsa_plugins.manifest import MANIFEST, DamagedError, check_folder, write_manifest
from corsa_plugins.parsing import json_value

__all__ = ["shared_seconds", "trained_once"]

_TRAINED, _SECONDS = "trained", "shared.json"


def trained_once(shelf: Path, follows_from: Mapping[str, Any], folder: Path, train: Callable[[Path], None]) -> bool:
    """Fill ``folder`` with what a training leaves: made now, or taken from ``shelf`` where it was made before.

    One that comes while another process is at the same training waits for it. Nothing is left there of a training that
    fails or is stopped, and one whose files are damaged is made again.

    Args:
        shelf: A folder for such trainings; made if it is not there.
        follows_from: All that the training follows from, as plain data; another training has others.
        folder: Of the update that wants it.
        train: Makes it, and writes what it leaves into the folder that it is given.

    Returns:
        Whether it was made now, so that the model is what it left; otherwise it is to be read from ``folder``.
    """
    digest = hashlib.sha256(json.dumps(follows_from, sort_keys=True, default=str).encode()).hexdigest()[:16]
    place, arrived = shelf / digest, time.monotonic()
    with sole_use(place, wait=True):
        done = place / _TRAINED
        made = not _is_whole(done)
        if made:
            start = time.monotonic()
            with atomic_directory(done) as new:
                train(new)
                _write_seconds(time.monotonic() - start, new)
                write_manifest(new)
        shutil.copytree(done, folder, ignore=shutil.ignore_patterns(MANIFEST, _SECONDS), dirs_exist_ok=True)
    if not made:
        _write_seconds(shared_seconds(done) - (time.monotonic() - arrived), folder)
    return made


def shared_seconds(folder: Path) -> float:
    """By how much the training that an update took from another method was longer than taking it, waiting included; 0
    where it made its own. With it an update lasts as long as if it had."""
    path = folder / _SECONDS
    return float(json_value(path.read_text(encoding="utf-8"))["seconds"]) if path.is_file() else 0.0


def _write_seconds(seconds: float, folder: Path) -> None:
    (folder / _SECONDS).write_text(json.dumps({"seconds": seconds}) + "\n", encoding="utf-8")


def _is_whole(folder: Path) -> bool:
    try:
        return folder.is_dir() and check_folder(folder)
    except DamagedError:
        return False
