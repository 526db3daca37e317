"""A folder's manifest: the checksum of every file in it, so that damage is noticed before it is measured."""

from __future__ import annotations

import json
from pathlib import Path

from corsa_plugins.errors import CorsaError
from corsa_plugins.files import atomic_write_text, sha256_of_file

MANIFEST_FILE = "manifest.json"


class BrokenTestbedError(CorsaError, RuntimeError):
    """A testbed folder that is not what was written: a file is missing, was added to, cut short or changed."""


def write_manifest(folder: Path, key: str) -> None:
    """Record the recipe's `key` and the SHA-256 of every file in `folder`."""
    files = {p.name: sha256_of_file(p) for p in sorted(folder.iterdir()) if p.is_file() and p.name != MANIFEST_FILE}
    atomic_write_text(folder / MANIFEST_FILE, json.dumps({"recipe": key, "sha256": files}, indent=1) + "\n")


def check_manifest(folder: Path, key: str | None = None) -> None:
    """Compare `folder` with its manifest, and the manifest with the recipe's `key` if one is given.

    Raises:
        BrokenTestbedError: naming the first file that is wrong, and how.
    """
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        recipe, files = str(manifest["recipe"]), dict(manifest["sha256"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BrokenTestbedError(f"{folder}: no readable {MANIFEST_FILE} ({type(error).__name__})") from error
    if key is not None and recipe != key:
        raise BrokenTestbedError(f"{folder}: made from recipe {recipe}, wanted {key}")
    for name, wanted in files.items():
        path = folder / name
        if not path.is_file():
            raise BrokenTestbedError(f"{folder}: {name} is missing")
        if sha256_of_file(path) != wanted:
            raise BrokenTestbedError(f"{folder}: {name} is not the file that was written ({path.stat().st_size} bytes)")
