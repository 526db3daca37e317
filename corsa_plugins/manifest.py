"""A folder's manifest: the checksum of every file in it, so that damage is noticed before what is damaged is used.

``manifest.json`` is written when the files are, and compared with them when they are read. One flipped bit of a file,
or of the manifest itself, is noticed. It guards against disks, copies and slips, not against who means harm.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from corsa_plugins.errors import DamagedError
from corsa_plugins.files import atomic_write_text, sha256_of_file
from corsa_plugins.parsing import json_value

__all__ = [
    "MANIFEST",
    "DamagedError",
    "Manifest",
    "check_folder",
    "checksums",
    "known_checksums",
    "read_manifest",
    "versions",
    "write_manifest",
]

MANIFEST = "manifest.json"
_CARD = "README.md"
_THREADS = 4


@dataclass(frozen=True)
class Manifest:
    """What was written to a folder.

    Attributes:
        folder: It.
        files: SHA-256 by name, relative to the folder, with ``/`` between the parts.
        about: Whatever else was noted.
    """

    folder: Path
    files: Mapping[str, str]
    about: Mapping[str, Any]
    _checked: set[str] = field(default_factory=set, compare=False, repr=False)

    def check(self, *names: str) -> None:
        """Compare files with what was written, each once for this object.

        Args:
            names: Of files; by default all that were written.

        Raises:
            DamagedError: One is missing, was never written, or is another; the first is named.
        """
        left = [name for name in names or self.files if name not in self._checked]
        for name in left:
            if name not in self.files:
                raise DamagedError(f"{self.folder / MANIFEST} does not list {name}: one of the two is damaged")
            if not (self.folder / name).is_file():
                raise DamagedError(f"{self.folder / name} is missing: restore it")
        with ThreadPoolExecutor(_THREADS) as pool:
            found = pool.map(lambda name: sha256_of_file(self.folder / name), left)
            for name, digest in zip(left, found, strict=True):
                if digest != self.files[name]:
                    raise DamagedError(
                        f"{self.folder / name} is not the file that was written "
                        f"({(self.folder / name).stat().st_size} bytes): restore it, or, if it was changed on purpose, "
                        f"delete {self.folder / MANIFEST}"
                    )
                self._checked.add(name)


def checksums(folder: str | os.PathLike[str], names: Iterable[str] | None = None) -> dict[str, str]:
    """SHA-256 of files in a folder, by name; by default of all but the manifest and the card (``README.md``), which
    is text for people and theirs to change; in folders below too."""
    root = Path(folder)
    if names is None:
        names = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if path.is_file()]
        names = [name for name in names if name != _CARD]
    listed = [name for name in names if name != MANIFEST]
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(listed, pool.map(lambda name: sha256_of_file(root / name), listed), strict=True))


def known_checksums(folder: str | os.PathLike[str], names: Iterable[str]) -> dict[str, str]:
    """SHA-256 by name of those of the files that are there; where the folder's manifest lists one, as it says.

    Args:
        folder: Compared with its manifest already, if it has one.
        names: Relative to it.

    Raises:
        DamagedError: The manifest cannot be read.
    """
    manifest = read_manifest(folder)
    known = {} if manifest is None else manifest.files
    there = [name for name in names if (Path(folder) / name).is_file()]
    read = checksums(folder, [name for name in there if name not in known])
    return {name: known.get(name) or read[name] for name in there}


def versions() -> dict[str, str]:
    """Versions of what a result depends on, as far as installed."""
    installed = {"python": platform.python_version()}
    for name in ("corsa-plugins", "torch", "transformers", "peft", "trl", "mergekit"):
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def write_manifest(folder: str | os.PathLike[str], files: Mapping[str, str] | None = None, **about: Any) -> None:
    """Write ``manifest.json``, with the versions of what the files were made by.

    Args:
        folder: With the files.
        files: As :func:`checksums` gives them; by default of all that are there.
        about: JSON values to note beside them.

    Raises:
        OSError: It cannot be written.
    """
    content = {**about, "versions": versions(), "sha256": checksums(folder) if files is None else dict(files)}
    atomic_write_text(Path(folder) / MANIFEST, json.dumps(content, indent=1) + "\n")


def read_manifest(folder: str | os.PathLike[str]) -> Manifest | None:
    """The manifest of a folder; ``None`` where there is none, or another program's. No file is read yet.

    Raises:
        DamagedError: It cannot be read, or lists files elsewhere.
    """
    path = Path(folder) / MANIFEST
    try:
        content = json_value(path.read_text(encoding="utf-8"))
        lists = [name for name, value in content.items() if _is_list_of_digests(value)]
        files = content.pop("sha256") if lists else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DamagedError(f"{path} is damaged ({type(error).__name__}): restore it") from error
    if files is None:
        return None
    for name in files:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DamagedError(f"{path} lists {name}, which is elsewhere: it is damaged")
    return Manifest(Path(folder), files, content)


def _is_list_of_digests(value: Any) -> bool:
    digests = value.values() if isinstance(value, dict) else ()
    return any(isinstance(digest, str) and len(digest) == 64 for digest in digests)


def check_folder(folder: str | os.PathLike[str], *needed: str) -> bool:
    """Compare a folder with its manifest, if it has one.

    Args:
        folder: It.
        needed: Names of files that must be listed.

    Returns:
        Whether it has one.

    Raises:
        DamagedError: A file is not what was written; the message names it.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return False
    manifest.check(*dict.fromkeys([*manifest.files, *needed]))
    return True
