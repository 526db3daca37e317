"""A testbed's manifest, which knows the recipe too."""

from __future__ import annotations

from pathlib import Path

from corsa_plugins.errors import CorsaError
from corsa_plugins.manifest import MANIFEST, DamagedError, read_manifest

__all__ = ["BrokenTestbedError", "check_manifest"]


class BrokenTestbedError(CorsaError, RuntimeError):
    """A testbed folder that is not what was written: a file is missing, was added to, cut short or changed."""


def check_manifest(folder: Path, key: str | None = None) -> None:
    """Compare `folder` with its manifest, and the manifest with the recipe's `key` if one is given.

    Raises:
        BrokenTestbedError: naming the first file that is wrong, and how.
    """
    try:
        manifest = read_manifest(folder)
        if manifest is None or "recipe" not in manifest.about:
            raise BrokenTestbedError(f"{folder}: no {MANIFEST} of a testbed")
        if key is not None and manifest.about["recipe"] != key:
            raise BrokenTestbedError(f"{folder}: made from recipe {manifest.about['recipe']}, wanted {key}")
        manifest.check()
    except DamagedError as error:
        raise BrokenTestbedError(str(error)) from error
