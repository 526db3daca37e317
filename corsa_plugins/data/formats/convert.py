"""A published data set of edits into files of edit requests, with a report of what became of it."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from corsa_plugins.data.code_problems import write_problems
from corsa_plugins.data.contradictions import check_requests, first_of_contradictions, split_rounds
from corsa_plugins.data.formats.base import FormatError, FormatResult
from corsa_plugins.data.formats.read import read_format
from corsa_plugins.data.formats.registry import get_format
from corsa_plugins.data.reading import write_requests
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError

__all__ = ["Conversion", "convert_to_requests"]

SHOWN = 20
"""How many problems a report lists; the rest is counted."""


@dataclass(frozen=True)
class Conversion:
    """What was converted.

    Attributes:
        result: What was read.
        files: What was written: path -> requests.
        left_out: A line for each request that contradicted an earlier one and was left out.
        other_rounds: Files of rounds that were there before, and are not of these.
        problems: The file of programming problems, where one was written.
    """

    result: FormatResult
    files: dict[Path, list[EditRequest]]
    left_out: tuple[str, ...] = ()
    other_rounds: tuple[Path, ...] = ()
    problems: Path | None = None

    def lines(self) -> list[str]:
        """A report: what was read, which fields became what, what was dropped and why, and what was skipped."""
        result = self.result
        lines = [f"read {result.read} records of {result.source} as {result.format}: {len(result.requests)} requests"]
        lines += ["mapped:", *(f"  {field} -> {becomes}" for field, becomes in result.mapping.items())]
        lines.append(f"dropped: {sum(result.dropped.values())} values" if result.dropped else "dropped: nothing")
        reasons = {field.replace("[]", ""): why for field, why in get_format(result.format).dropped.items()}
        for field, count in sorted(result.dropped.items(), key=lambda item: -item[1]):
            why = reasons.get(field)
            lines.append(f"  {field}: {count}" + (f" ({why})" if why else ""))
        repeated = sum(len(same.indices) - 1 for same in check_requests(result.requests).duplicates)
        if repeated:
            lines.append(f"repeated requests: {repeated} (kept: such an edit counts more than once)")
        lines += _listed("malformed, skipped", [str(problem) for problem in result.problems])
        if self.left_out:
            lines += _listed("contradicting an earlier request, left out (--rounds keeps them)", self.left_out)
        written = [f"written to {path}: {len(requests)} requests" for path, requests in self.files.items()]
        if self.problems is not None:
            written.append(f"written to {self.problems}: {len(result.code)} programming problems with tests")
        return [*lines, *written]


def convert_to_requests(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    name: str | None = None,
    rounds: bool = False,
    strict: bool = False,
    limit: int | None = None,
    split: str | None = None,
    problems: str | os.PathLike[str] | None = None,
) -> Conversion:
    """Read a published data set and write it as edit requests.

    Args:
        source: As for :func:`~corsa_plugins.data.formats.read.read_format`.
        out: The file to write. With ``rounds``, its name in front of ``.round-1``, ``.round-2``, ...
        name: The format; by default told from the fields.
        rounds: Write successive updates of a fact to successive files; otherwise the first of requests that contradict
            each other is kept.
        strict: Stop at the first record that is malformed or contradicts one before.
        limit: Read at most so many records.
        split: Of a data set on the Hub.
        problems: Where to write the programming problems with their tests, of a format of code.

    Raises:
        SettingError: The source would be written over; or as for ``read_format``.
        FormatError: As for ``read_format``; with ``strict``, a contradiction too. Nothing is written then.
        OSError: A file cannot be written.
    """
    target = Path(out)
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a directory: name a file in it")
    if target.exists() and os.path.exists(source) and target.samefile(source):
        raise SettingError(f"{target} is the file that is read: name another file to write")
    result = read_format(name, source, strict=strict, limit=limit, split=split)
    left_out: list[str] = []
    if rounds:
        numbered = enumerate(split_rounds(result.requests), start=1)
        files = {target.with_name(f"{target.stem}.round-{n}{target.suffix}"): requests for n, requests in numbered}
    else:
        kept, left_out = first_of_contradictions(result.requests)
        if strict and left_out:
            raise FormatError(f"{result.source}: {left_out[0]}; --rounds keeps both, in successive files")
        files = {target: kept}
    if problems is not None and not result.code:
        raise FormatError(f"{result.source}: none of it is a programming problem with tests; leave out --to-problems")
    for path, requests in files.items():
        write_requests(path, requests)
    if problems is not None:
        trained = {request.case_id for requests in files.values() for request in requests}
        code = [each.model_copy(update={"trained": each.task_id in trained}) for each in result.code]
        write_problems(problems, code)
    pattern = f"{glob.escape(target.stem)}.round-*{glob.escape(target.suffix)}"
    others = tuple(path for path in sorted(target.parent.glob(pattern)) if path not in files) if rounds else ()
    return Conversion(result, files, tuple(left_out), others, None if problems is None else Path(problems))


def _listed(title: str, lines: Sequence[str]) -> Iterator[str]:
    yield f"{title}: {len(lines)}"
    yield from (f"  {line}" for line in lines[:SHOWN])
    if len(lines) > SHOWN:
        yield f"  ... and {len(lines) - SHOWN} more"
