"""Kinds of files that a report is made of, recognised by what they hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corsa_plugins.errors import CorsaError

__all__ = ["File", "Kind", "SourceError", "all_have", "first_has", "has", "number", "updates_of"]


class SourceError(CorsaError, ValueError):
    """A file or folder that no part of a report can be made of."""


@dataclass(frozen=True)
class File:
    """A file that was read.

    Attributes:
        path: Where it is.
        data: The data of a JSON file, or the list of those of a JSON Lines file.
        label: What it is called in the report.
        is_labelled: Whether it was asked to be called so.
        beside: The rows that the section has from other files.
    """

    path: Path
    data: Any
    label: str
    is_labelled: bool = False
    beside: Sequence[Any] = ()


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of file.

    Attributes:
        name: In words.
        fits: Whether data of a file are of this kind.
        read: Makes rows of its section, and says in words what they are. ``ValueError``, ``TypeError``, ``KeyError``
            and ``AttributeError`` mean that the file is damaged.
        names: Names of files that a folder is searched for.
        find: Further files of a folder.
        said: The sentence about it in messages; kinds that share one have it once.
    """

    name: str
    fits: Callable[[Any], bool]
    read: Callable[[File], tuple[list[Any], str]]
    names: tuple[str, ...] = ()
    find: Callable[[Path], list[Path]] = lambda folder: []
    said: str = ""

    def files(self, folder: Path) -> list[Path]:
        """Those of a folder that may be of this kind."""
        return [folder / name for name in self.names if (folder / name).is_file()] + self.find(folder)


def updates_of(name: str) -> Callable[[Path], list[Path]]:
    """Files of this name in the folder of a method that ``corsa protocol`` wrote: one for each update."""
    return lambda folder: sorted(folder.glob(f"updates/*/{name}"))


def has(*keys: str) -> Callable[[Any], bool]:
    """Whether data are a mapping with these keys."""
    return lambda data: isinstance(data, Mapping) and all(key in data for key in keys)


def all_have(*keys: str) -> Callable[[Any], bool]:
    """Whether data are a list of mappings with these keys, and not empty."""
    fits = has(*keys)
    return lambda data: isinstance(data, list) and bool(data) and all(fits(row) for row in data)


def first_has(*keys: str) -> Callable[[Any], bool]:
    """Whether JSON Lines are such mappings, by the first line, which may be the only one."""
    fits = has(*keys)
    return lambda data: fits(data[0] if isinstance(data, list) and data else data)


def number(value: Any) -> float | None:
    """A number, where there is one.

    Raises:
        ValueError, TypeError: It is something else.
    """
    return None if value is None else float(value)
