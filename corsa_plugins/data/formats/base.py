"""What a published format is, and what reading one gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from corsa_plugins.data.code_problems import CodeProblem
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import CorsaError

__all__ = ["Drops", "Format", "FormatError", "FormatResult", "HubSource", "Problem", "RecordError"]

MAX_REPORTED = 20
"""How many malformed records a message lists; the rest is counted."""


class FormatError(CorsaError, ValueError):
    """A file or data set that cannot be read as the format asked for; the message says where and what to do.

    Attributes:
        problems: The malformed records behind it, if any.
    """

    def __init__(self, message: str, problems: Iterable[Problem] = ()) -> None:
        self.problems = tuple(problems)
        lines = [message, *(f"  {problem}" for problem in self.problems[:MAX_REPORTED])]
        if len(self.problems) > MAX_REPORTED:
            lines.append(f"  ... and {len(self.problems) - MAX_REPORTED} more")
        super().__init__("\n".join(lines))


class RecordError(FormatError):
    """One record that cannot be made into edit requests; the message is the reason, which any terminal can show."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason.encode("utf-8", "backslashreplace").decode("utf-8"))


class Drops(Counter[str]):
    """Counts, by field, of the values of a record that have no place in an edit request."""

    def add(self, name: str, n: int = 1) -> None:
        """Count ``n`` values of ``name`` as dropped; nothing for zero."""
        if n > 0:
            self[name] += n


Convert = Callable[[Mapping[str, Any], int, Drops], list[EditRequest]]
"""Makes one record, at an index, into requests; raises :class:`RecordError`, and counts what it leaves out."""


@dataclass(frozen=True)
class HubSource:
    """Where a data set lies on the Hugging Face Hub.

    Attributes:
        name: The data set, ``owner/name``.
        splits: The splits to choose from; the first one is the default.
        files: For data sets kept as JSON files: split -> file. Such a file is downloaded as it is and read as a local
            one; without files the split is loaded by the ``datasets`` library.
    """

    name: str
    splits: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """A published format of edits.

    Fields of records are written as paths: ``requested_rewrite[].target_new.str`` is the ``str`` in the ``target_new``
    of every element of the list ``requested_rewrite``. A field stands for everything below it.

    Attributes:
        name: What it is called here and by ``corsa convert --format``.
        description: One line: what the data are.
        homepage: The paper's or the repository's address.
        licence: As stated where it is published; ``"not stated"`` otherwise.
        obtain: Where to get the files.
        mapping: Field -> what it becomes, for every field that is used.
        dropped: Field -> why, for the known fields that are not; unknown fields are dropped too, and counted.
        signatures: Sets of fields of which one is present, whole, in each record: how the format is recognised.
        convert: Makes a record into requests.
        finish: Done at last with all requests, if given.
        code: Makes a record into programming problems with their tests, for formats of code; empty where it has none.
        hub: Where it lies on the Hub, if it does.
    """

    name: str
    description: str
    homepage: str
    licence: str
    obtain: str
    mapping: Mapping[str, str]
    signatures: tuple[tuple[str, ...], ...]
    convert: Convert
    dropped: Mapping[str, str] = field(default_factory=dict)
    finish: Callable[[list[EditRequest]], list[EditRequest]] | None = None
    hub: HubSource | None = None
    code: Callable[[Mapping[str, Any], int], list[CodeProblem]] | None = None

    def summary(self) -> str:
        """What it is, where it comes from, and on which terms: a few lines."""
        lines = [self.name, f"  {self.description}", f"  {self.homepage}; licence: {self.licence}"]
        lines.append(f"  from: {self.obtain}")
        if self.hub:
            lines.append(f"  on the Hub: {self.hub.name} ({', '.join(self.hub.splits)})")
        return "\n".join(lines)

    def details(self) -> str:
        """The summary, and a line for each field: what becomes of it, or why it is dropped."""
        used = [f"  {field} -> {becomes}" for field, becomes in self.mapping.items()]
        unused = [f"  {field}: {why}" for field, why in self.dropped.items()]
        return "\n".join([self.summary(), "mapped:", *used, "dropped:", *unused])


@dataclass(frozen=True)
class Problem:
    """A record that was skipped.

    Attributes:
        index: Its place in the file or data set, from 0.
        reason: What is wrong with it.
        line: Its line in a JSON Lines file, from 1.
    """

    index: int
    reason: str
    line: int | None = None

    def __str__(self) -> str:
        where = f"record {self.index}" if self.line is None else f"record {self.index} (line {self.line})"
        return f"{where}: {self.reason}"


@dataclass(frozen=True)
class FormatResult:
    """What was read.

    Attributes:
        requests: The edit requests, in the order of the records. Contradictions are left in: see
            :func:`corsa_plugins.data.formats.split_rounds` and
            :func:`corsa_plugins.data.formats.first_of_contradictions`.
        problems: The malformed records, which gave no request.
        dropped: Field -> how many values of it, in the records that were converted, have no place in a request.
        mapping: Field -> what it becomes, for the fields of :attr:`Format.mapping` that the records have.
        format: The name of the format.
        source: The file or data set.
        read: How many records were read, malformed ones included.
        code: The programming problems, of formats of code.
    """

    requests: list[EditRequest]
    problems: list[Problem]
    dropped: dict[str, int]
    mapping: dict[str, str]
    format: str
    source: str
    read: int
    code: tuple[CodeProblem, ...] = ()
