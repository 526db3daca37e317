"""The text that statistics are collected on: files, data sets, and the testbed's own biographies."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corsa_plugins.errors import CorsaError, SettingError, require
from corsa_plugins.parsing import json_value
from corsa_plugins.paths import user_path

__all__ = ["TextError", "Texts", "read_texts"]

_JSON_LINES = {".jsonl", ".ndjson"}
_BUILDERS = {".parquet": "parquet", ".csv": "csv", ".arrow": "arrow", ".json": "json", ".gz": "", ".zst": "", ".xz": ""}
_SAVED = ("state.json", "dataset_dict.json")  # what datasets' save_to_disk writes


class TextError(CorsaError, ValueError):
    """A file or data set that gives no text; the message names the place and says what to do."""


@dataclass(frozen=True)
class Texts:
    """Documents, one string each; see :func:`read_texts`. Can be read any number of times, from the start each time."""

    source: str
    field: str = "text"
    split: str = "train"
    config: str | None = None

    def __iter__(self) -> Iterator[str]:
        path = user_path(self.source)
        if not path.exists():
            _refuse_missing_file(self.source)
        if path.is_file() and path.suffix not in _BUILDERS:
            return self._from_json_lines(path) if path.suffix in _JSON_LINES else _from_lines(path)
        return self._from_dataset(path)

    def _from_json_lines(self, path: Path) -> Iterator[str]:
        for number, line in _lines(path):
            try:
                row = json_value(line)
            except ValueError as error:
                raise TextError(f"{path}, line {number}: not JSON: {error}") from None
            yield self._text(row, f"{path}, line {number}")

    def _from_dataset(self, path: Path) -> Iterator[str]:
        datasets: Any = require("datasets", "trl", what=f"reading {self.source}")
        try:
            for number, row in enumerate(self._rows(datasets, path), start=1):
                yield self._text(row, f"{self.source}, row {number}")
        except TextError:
            raise
        except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
            raise TextError(
                f"the data set {self.source} (config {self.config or 'default'}, split {self.split}) cannot be read: "
                f"{error}"
            ) from error

    def _rows(self, datasets: Any, path: Path) -> Iterable[Any]:
        if path.is_file():
            suffix = path.suffix if _BUILDERS[path.suffix] else Path(path.stem).suffix
            builder = "json" if suffix in _JSON_LINES else _BUILDERS.get(suffix) or "text"
            return datasets.load_dataset(builder, data_files=os.fspath(path), split="train", streaming=True)
        if any((path / name).exists() for name in _SAVED):
            saved = datasets.load_from_disk(os.fspath(path))
            return saved[self.split] if isinstance(saved, Mapping) else saved
        name = os.fspath(path) if path.exists() else self.source
        return datasets.load_dataset(name, self.config, split=self.split, streaming=True)

    def _text(self, row: Any, where: str) -> str:
        if not isinstance(row, Mapping) or self.field not in row:
            there = ", ".join(map(str, row)) if isinstance(row, Mapping) else f"a {type(row).__name__}"
            raise TextError(f"{where}: no field {self.field!r} but {there or 'nothing'}: name the one with the text")
        text = row[self.field]
        if not isinstance(text, str):
            raise TextError(f"{where}: {self.field!r} is a {type(text).__name__}: it should be a string")
        return text


def read_texts(
    source: str | os.PathLike[str], *, field: str = "text", split: str = "train", config: str | None = None
) -> Texts:
    """Documents from a file or a data set, read as they are needed.

    Args:
        source: A text file: each line that is not blank is a document. JSON Lines (``.jsonl``, ``.ndjson``): the
            ``field`` of each line. Or, with ``datasets`` installed: a file it reads (``.parquet``, ``.csv``,
            ``.arrow``, ``.json``, compressed ones), a folder, a data set saved with ``save_to_disk``, or a name on the
            Hugging Face Hub, streamed.
        field: The column with the text.
        split: Of a data set.
        config: Of a data set with several, for instance ``"wikitext-103-raw-v1"``.

    Raises:
        TextError: There is no such file. What is wrong inside is found as it is read.
        MissingExtraError: ``datasets`` is needed and not installed.
    """
    if not os.fspath(source):
        raise SettingError("the text has no name: give a file, or the name of a data set")
    texts = Texts(os.fspath(source), field, split, config)
    path = user_path(texts.source)
    if not path.exists():
        _refuse_missing_file(texts.source)
    if not path.is_file() or path.suffix in _BUILDERS:
        require("datasets", "trl", what=f"reading {texts.source}")
    return texts


def _refuse_missing_file(source: str) -> None:
    """A name on the Hub has at most one slash, does not begin like a path, and does not end like a file."""
    like_a_path = source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source
    if like_a_path or Path(source).suffix in {".txt", ".md", *_JSON_LINES, *_BUILDERS}:
        raise TextError(f"{source}: no such file or folder (looked in {Path.cwd()})")


def _from_lines(path: Path) -> Iterator[str]:
    for _, line in _lines(path):
        yield line


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, without their ends, numbered from 1.

    Raises:
        TextError: There is none, or the file is not UTF-8.
    """
    empty = True
    with path.open(encoding="utf-8-sig") as stream:
        try:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    empty = False
                    yield number, line.rstrip("\n")
        except UnicodeDecodeError as error:
            raise TextError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    if empty:
        raise TextError(f"{path}: there is no text in it")
