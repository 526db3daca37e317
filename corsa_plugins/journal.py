"""What is finished of a long piece of work, on disk line by line: stopped, it goes on where it was.

A journal is JSON Lines. The first line, its head, says what work it is of; each further line is one finished item,
flushed to the disk before the next is begun. A last line that was torn, because the process or the machine stopped
while it was written, is dropped, and what it held is done again. A journal of other work is never gone on with.

Where there is a head, it and every line after it carry a checksum (:mod:`corsa_plugins.sealed`), so that a figure that
was changed since is not taken for one that was found: a line that is an object as its last entry, any other as the
second of a list. Journals from before there were checksums are gone on with as they were begun.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from corsa_plugins.errors import CorsaError, DamagedError
from corsa_plugins.parsing import json_value
from corsa_plugins.sealed import CHECKSUM, is_sealed, sealed, unsealed

__all__ = ["Journal", "JournalContent", "JournalError", "OtherWorkError", "read_journal"]

logger = logging.getLogger(__name__)

_REMEDY = "restore the file, or take this line and those after it out: what they held is done again"
_RENAME = "restore the file, or name another one"


class JournalError(CorsaError, ValueError):
    """A file that is no journal, or a damaged one; the message names the line."""


class OtherWorkError(JournalError):
    """A journal of other work.

    Attributes:
        differing: Names of what differs, in order; within a value that is itself a mapping, the name there.
    """

    def __init__(self, path: Path, differing: list[str]) -> None:
        names = ", ".join(differing)
        super().__init__(f"{path} is of other work (other {names}): go on as it was begun, or name another file")
        self.differing = differing


class JournalContent(NamedTuple):
    """What a journal holds.

    Attributes:
        head: The first line; ``None`` where there is none yet, or none is kept.
        items: The finished ones, in order.
        size: Bytes of the whole lines: what is behind them is torn.
        torn: Whether anything is.
        checked: Whether its lines carry checksums.
    """

    head: dict[str, Any] | None
    items: list[Any]
    size: int
    torn: bool
    checked: bool = False


def read_journal(path: str | os.PathLike[str], *, headed: bool = True) -> JournalContent:
    """Read a journal, also one that is being written.

    Args:
        path: Of the file.
        headed: Whether its first line is a head.

    Raises:
        JournalError: A line is not JSON, or not what was written, or the first no mapping. Only the last line may be
            torn.
        OSError: The file cannot be read.
    """
    content = Path(path).read_bytes()
    lines: list[Any] = []
    size = 0
    while (end := content.find(b"\n", size)) >= 0:
        try:
            if content[size:end].strip():
                lines.append(json_value(content[size:end].decode("utf-8")))  # of bytes it guesses the encoding
        except ValueError as error:
            # A machine that stops may leave a last line of the right length and other content. A damaged head is none:
            # the file could be anything.
            if lines and end + 1 == len(content):
                break
            raise JournalError(f"{path}, line {len(lines) + 1} is no line of a journal ({error})") from None
        size = end + 1
    head = lines.pop(0) if headed and lines else None
    if headed and size and not isinstance(head, dict):
        raise JournalError(f"{path}: the first line is not the head of a journal")
    checked = headed and any(map(_has_checksum, (head, *lines)))
    if checked:
        try:
            if not _has_checksum(head):
                raise DamagedError(f"{path}, line 1, is not what was written: {_RENAME}")
            head = unsealed(head, f"{path}, line 1,", _RENAME)
            lines = [_checked(line, f"{path}, line {number},") for number, line in enumerate(lines, start=2)]
        except DamagedError as error:
            raise JournalError(str(error)) from None
    return JournalContent(head, lines, size, size < len(content), checked)


class Journal:
    """A journal, open to add finished items to; a context manager.

    >>> with Journal("scores.jsonl", {"scores of": "model"}) as journal:  # doctest: +SKIP
    ...     for task in tasks[len(journal.items) :]:
    ...         journal.append(score(task))

    Args:
        path: Made, with its folder, if it is not there.
        head: What work it is of, JSON values; ``None`` keeps no head, where every item says what it is of.

    Attributes:
        items: Found in it, or added.
        torn: Whether a torn line was dropped from it.

    Raises:
        OtherWorkError: The file has another head. Nothing in it has been changed.
        JournalError: It is no journal, or damaged. Likewise.
        OSError: It cannot be read or written.
    """

    def __init__(self, path: str | os.PathLike[str], head: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path)
        content = self._read(head) if self.path.exists() else JournalContent(None, [], 0, False)
        self.items: list[Any] = content.items
        self.torn = content.torn
        if self.torn:
            logger.warning("%s: an incomplete last line is dropped, and what it held is done again", self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Not buffered: what did not fit on the disk would be tried again when the file is closed.
        self._file = self.path.open("r+b" if content.size else "wb", buffering=0)
        self._file.truncate(content.size)
        self._file.seek(content.size)
        self._checked = content.checked
        if head is not None and not content.size:
            self._write(sealed(head))
            self._checked = True

    def _read(self, head: Mapping[str, Any] | None) -> JournalContent:
        if head is None:
            content = read_journal(self.path, headed=False)
            if content.torn and not content.items:
                raise JournalError(f"{self.path}: no line of it is whole; delete it, if it is a journal")
            return content
        begun = self.path.read_bytes()
        if b"\n" not in begun and _line(sealed(head)).startswith(begun):
            return JournalContent(None, [], 0, bool(begun))  # stopped while the head was written
        content = read_journal(self.path)
        if content.head is None:
            raise JournalError(f"{self.path}: the first line is not the head of a journal")
        differing = list(dict.fromkeys(_differing(content.head, json.loads(_line(head)))))
        if differing:
            raise OtherWorkError(self.path, differing)
        return content

    def append(self, item: Any) -> None:
        """Add a finished item, JSON values; it is on the disk when this returns.

        Raises:
            OSError: It cannot be written; the message names the file, which has what it had.
        """
        self._write(_with_checksum(item) if self._checked else item)
        self.items.append(item)

    def _write(self, value: Any) -> None:
        before, left = self._file.tell(), memoryview(_line(value))
        try:
            while left:
                left = left[self._file.write(left) or 0 :]
            os.fsync(self._file.fileno())
        except OSError as error:  # of a disk that is full it does not say which file
            with suppress(OSError):
                self._file.truncate(before)
                self._file.seek(before)
            raise OSError(error.errno, f"cannot be written, {error.strerror}", str(self.path)) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _with_checksum(item: Any) -> Any:
    if isinstance(item, Mapping) and CHECKSUM not in item:
        return sealed(item)
    return [item, sealed({"item": item})[CHECKSUM]]


def _has_checksum(line: Any) -> bool:
    return is_sealed(_content(line))


def _content(line: Any) -> Any:
    """Of a line that is a list, the object that its checksum is of."""
    return {"item": line[0], CHECKSUM: line[1]} if isinstance(line, list) and len(line) == 2 else line


def _checked(line: Any, where: str) -> Any:
    """The item of a line that carries a checksum.

    Raises:
        DamagedError: It is not what was written.
    """
    if not _has_checksum(line):
        raise DamagedError(f"{where} is not what was written: {_REMEDY}")
    item = unsealed(_content(line), where, _REMEDY)
    return item["item"] if isinstance(line, list) else item


def _differing(first: Any, second: Any, name: str = "") -> Iterator[str]:
    """Names of the values that differ in two mappings, those of the innermost mappings."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in sorted({**first, **second}):
            yield from _differing(first.get(key), second.get(key), key)
    elif first != second:
        yield name


def _line(value: Any) -> bytes:
    # ASCII: a lone surrogate in a text can be written, and read back
    return (json.dumps(value) + "\n").encode("ascii")
