"""The folder of an edit state: ``state.json`` for what is said, ``state.safetensors`` for the tensors, and a manifest.

States that were written before there were manifests are read, with a warning: damage to them may go unnoticed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from corsa_plugins.errors import CorsaError
from corsa_plugins.files import atomic_directory
from corsa_plugins.manifest import MANIFEST, check_folder, write_manifest
from corsa_plugins.parsing import json_value

__all__ = ["STATE_JSON", "StateError", "damage_named", "read_state", "write_state"]

logger = logging.getLogger(__name__)

STATE_JSON = "state.json"
_TENSORS = "state.safetensors"
_FORMAT = 1


class StateError(CorsaError, ValueError):
    """An edit state that does not fit the model, cannot be read, or has no such batch."""


def write_state(path: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write all files, completely or not at all; an earlier state there is replaced.

    Raises:
        StateError: The folder holds anything else, which would be lost.
        OSError: It cannot be written; what was there is still there.
    """
    from safetensors.torch import save_file

    if path.is_dir() and {file.name for file in path.iterdir()} - {STATE_JSON, _TENSORS, MANIFEST}:
        raise StateError(f"{path} is a folder with other files in it: name a new one for the edit state")
    content = {"format": _FORMAT, **description, "tensors": sorted(tensors)}
    with atomic_directory(path) as folder:
        save_file(dict(tensors), folder / _TENSORS)
        (folder / STATE_JSON).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
        write_manifest(folder)


def read_state(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What :func:`write_state` wrote: the description and the tensors.

    Raises:
        StateError: There is none, or of another format, or the files are not of one another.
        OSError, SafetensorError, ValueError, KeyError, TypeError: It is damaged; see :func:`damage_named`.
    """
    from safetensors.torch import load_file

    if not (path / STATE_JSON).is_file():
        raise StateError(f"{path} is no edit state: there is no {STATE_JSON} in it")
    if not check_folder(path, STATE_JSON, _TENSORS):
        logger.warning(
            "%s has no %s with checksums, so damage to it may go unnoticed: it was written before states had one; "
            "saved again, it has one",
            path,
            MANIFEST,
        )
    content = json_value((path / STATE_JSON).read_text(encoding="utf-8"))
    if content["format"] != _FORMAT:
        raise StateError(f"{path} has format {content['format']}, and this version reads {_FORMAT}: upgrade")
    tensors = load_file(path / _TENSORS)
    if sorted(tensors) != content["tensors"]:
        raise StateError(f"{path} is damaged: {_TENSORS} does not hold what {STATE_JSON} lists; restore both files")
    return content, tensors


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Whatever reading a state stumbles over becomes a :class:`StateError` that names the folder."""
    try:
        yield
    except StateError:
        raise
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise StateError(
            f"{path} is damaged, or of another version, and cannot be read ({error}); restore both files, or use "
            "the version that wrote them"
        ) from error
