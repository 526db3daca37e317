"""Records from a local file or from the Hub, one at a time where the file allows it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corsa_plugins.data.formats.base import FormatError, HubSource
from corsa_plugins.errors import SettingError, require
from corsa_plugins.paths import user_path

__all__ = ["HUB_PREFIX", "Raw", "open_hub", "open_source"]

HUB_PREFIX = "hub:"
"""``hub:owner/name`` names a data set on the Hub; ``hub:`` alone the one that the format documents."""

SAMPLE_LINES = 20
"""How many lines of a file are tried to see whether it is JSON Lines."""


@dataclass(frozen=True)
class Raw:
    """One record as it came: a value, or why there is none."""

    index: int
    value: Any = None
    error: str | None = None
    line: int | None = None


def open_source(source: str, hub: HubSource | None, split: str | None) -> Iterator[Raw]:
    """The records of ``source``: a file (JSON, JSON Lines, Parquet), or ``hub:`` and a data set's name.

    Raises:
        FormatError: It cannot be read, or holds no records.
        SettingError: A split is asked of a file, or one that the data set does not have.
    """
    if source.startswith(HUB_PREFIX):
        return open_hub(source.removeprefix(HUB_PREFIX), hub, split)
    if split is not None:
        raise SettingError(f"split {split!r}: only data sets on the Hub have splits; {source} is a file")
    return _open_file(user_path(source))


def open_hub(name: str, hub: HubSource | None, split: str | None) -> Iterator[Raw]:
    """The records of a data set on the Hub, or of a copy of its repository in a folder.

    Args:
        name: The data set or folder; empty for the one documented in ``hub``.
        hub: What the format documents, if anything.
        split: The split; by default the documented first one.

    Raises:
        FormatError: It cannot be loaded; the message says what to do without the Hub.
        SettingError: There is no data set to load, or no such split.
        MissingExtraError: ``datasets`` is needed and not installed.
    """
    name = name or (hub.name if hub else "")
    if not name:
        raise SettingError("no data set of this format is known on the Hub: name one, or download the file (--list)")
    # The names of splits and files are those of the documented data set; a copy in a folder has them too.
    known = hub if hub and (name == hub.name or Path(name).is_dir()) else None
    split = split or (known.splits[0] if known else "train")
    if known and known.files:
        if split not in known.files:
            raise SettingError(f"no split {split!r} in {name}: the splits are {', '.join(known.files)}")
        return _open_file(_hub_file(name, known.files[split]))
    return _load_dataset(name, split=split)


def _hub_file(name: str, file: str) -> Path:
    if Path(name).is_dir():
        return Path(name) / file
    hub = require("huggingface_hub", "trl", what="reading from the Hub")
    try:
        return Path(hub.hf_hub_download(name, file, repo_type="dataset"))
    except Exception as error:  # the Hub's errors have no common base; all of them mean that there is no file
        raise FormatError(_not_loaded(f"{file} of {name}", error)) from error


def _load_dataset(name: str, **options: Any) -> Iterator[Raw]:
    datasets = require("datasets", "trl", what="reading from the Hub")
    try:
        rows = datasets.load_dataset(name, **options)
    except Exception as error:  # likewise
        raise FormatError(_not_loaded(f"{name} ({options.get('split')})", error)) from error
    return (Raw(index, row) for index, row in enumerate(rows))


def _not_loaded(what: str, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (
        f"{what} cannot be loaded from the Hub: {reason}; check the name, the split and the connection, or download "
        "the file and name it instead"
    )


def _open_file(path: Path) -> Iterator[Raw]:
    if path.suffix == ".parquet" and path.is_file():
        return _load_dataset("parquet", data_files=str(path), split="train")
    try:
        with path.open("rb") as stream:
            start = _first_lines(stream)
    except FileNotFoundError:
        raise FormatError(f"{path}: no such file: check the path, or read from the Hub with --hub") from None
    except IsADirectoryError:
        raise FormatError(f"{path}: is a directory: name a file in it") from None
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not start:
        raise FormatError(f"{path}: is empty")
    first = start[0].lstrip()
    if first.startswith(b"version https://git-lfs"):
        raise FormatError(f"{path}: a Git LFS pointer, not the file: fetch it with 'git lfs pull', or download it")
    if first.startswith(b"<"):
        raise FormatError(f"{path}: a web page, not the file: download the file itself (its 'raw' address)")
    if first.startswith(b"{") and isinstance(_parse(start[0])[0], dict):
        return _lines(path)
    if first.startswith((b"[", b"{")):
        try:
            return _whole(path)
        except FormatError:
            if first.startswith(b"{") and any(isinstance(_parse(line)[0], dict) for line in start[1:]):
                return _lines(path)
            raise
    if any(isinstance(_parse(line)[0], dict) for line in start):
        return _lines(path)
    raise FormatError(f"{path}: neither JSON, JSON Lines nor Parquet (it begins with {first[:30]!r})")


def _first_lines(stream: Any) -> list[bytes]:
    lines: list[bytes] = []
    for raw in stream:
        line = raw.removeprefix(b"\xef\xbb\xbf") if not lines else raw
        if line.strip():
            lines.append(line)
        # One line may be a whole file; a second one is not worth its memory then.
        if len(lines) == SAMPLE_LINES or sum(map(len, lines)) > 2**24:
            break
    return lines


def _parse(line: bytes) -> tuple[Any, str | None]:
    try:
        return json.loads(line.decode("utf-8")), None
    except UnicodeDecodeError as error:
        return None, f"not UTF-8 (byte {error.start + 1})"
    except json.JSONDecodeError as error:
        return None, f"not JSON: {error.msg} at column {error.colno}"
    except RecursionError:
        return None, "nested too deeply"
    except ValueError as error:  # a number with more digits than Python converts
        return None, f"not usable JSON: {error}"


def _lines(path: Path) -> Iterator[Raw]:
    index = 0
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            if not line.strip():
                continue
            value, error = _parse(line)
            yield Raw(index, value, error, number)
            index += 1


def _whole(path: Path) -> Iterator[Raw]:
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    value, error = _parse(content)
    if error is not None:
        hint = "; is the download complete?" if "JSON:" in error else ""
        raise FormatError(f"{path}: {_with_line(content, error)}{hint}")
    records = [value] if isinstance(value, Mapping) else value
    if not records:
        raise FormatError(f"{path}: holds no records")
    return (Raw(index, record) for index, record in enumerate(records))


def _with_line(content: bytes, error: str) -> str:
    try:
        json.loads(content)
    except json.JSONDecodeError as found:
        return f"not JSON: {found.msg} at line {found.lineno}, column {found.colno}"
    except (ValueError, RecursionError):
        pass
    return error
