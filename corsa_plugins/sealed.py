"""JSON that carries its own checksum, for files that stand alone and for lines that are appended one by one.

A folder that is written in one piece has a manifest (:mod:`corsa_plugins.manifest`). What is changed or added to after
that has none: there each object has an entry ``"checksum"``, of all its other entries. One flipped bit of it is noticed
when it is read. What was written without one, before there were any or by hand, is read as it is.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from corsa_plugins.errors import DamagedError
from corsa_plugins.files import atomic_write_text
from corsa_plugins.parsing import json_value

__all__ = ["CHECKSUM", "is_sealed", "read_sealed", "sealed", "unsealed", "write_sealed"]

CHECKSUM = "checksum"
"""Name of the entry."""

_KIND, _DIGITS = "sha256:", 16
_REMEDY = f'restore it, or, if it was changed on purpose, take the entry "{CHECKSUM}" out of it'


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """``content``, JSON values, with the checksum of all of it as its last entry."""
    return {**content, CHECKSUM: _checksum_of(content)}


def is_sealed(value: Any) -> bool:
    """Whether a value is an object with a checksum."""
    return isinstance(value, Mapping) and str(value.get(CHECKSUM)).startswith(_KIND)


def unsealed(value: Any, where: str, remedy: str = _REMEDY) -> Any:
    """The value without its checksum, if it has one.

    Args:
        value: As it was read.
        where: The file, and the line in it, for the message.
        remedy: What to do, likewise.

    Raises:
        DamagedError: It is not what the checksum was made of.
    """
    if not is_sealed(value):
        return value
    content = {name: entry for name, entry in value.items() if name != CHECKSUM}
    if _checksum_of(content) != value[CHECKSUM]:
        raise DamagedError(f"{where} is not what was written: {remedy}")
    return content


def _checksum_of(content: Any) -> str:
    """Of JSON values, whatever the order of their entries: of what they are when they are read back."""
    plain = json.loads(json.dumps(content))
    text = json.dumps(plain, sort_keys=True)
    return _KIND + hashlib.sha256(text.encode("ascii")).hexdigest()[:_DIGITS]


def write_sealed(path: str | os.PathLike[str], content: Mapping[str, Any]) -> Path:
    """Write JSON with its checksum, whole or not at all.

    Raises:
        OSError: It cannot be written; what was there is still there.
    """
    return atomic_write_text(path, json.dumps(sealed(content), indent=2) + "\n")


def read_sealed(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object in a JSON file, without its checksum.

    Raises:
        DamagedError: It is no JSON, no object, or not what was written; the message names the file.
        OSError: It cannot be read.
    """
    try:
        content = json_value(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedError(f"{path} is damaged ({error}): restore it") from error
    if not isinstance(content, dict):
        raise DamagedError(f"{path} is damaged, and no JSON object: restore it")
    return dict(unsealed(content, str(path)))
