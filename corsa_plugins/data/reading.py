"""Edit requests and probes as JSON Lines, in and out; what is wrong with a file is told at once, by line and field."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from corsa_plugins.data.contradictions import check_requests
from corsa_plugins.data.records import Record
from corsa_plugins.data.requests import EditRequest, Probe, RequestError, quoted
from corsa_plugins.files import atomic_write_text

__all__ = ["read_probes", "read_records", "read_requests", "write_probes", "write_records", "write_requests"]

logger = logging.getLogger(__name__)

_R = TypeVar("_R", bound=Record)
_E = TypeVar("_E", bound=Record)


def read_requests(path: str | os.PathLike[str]) -> list[EditRequest]:
    """Read edit requests from a JSON Lines file (UTF-8, a byte order mark and blank lines tolerated).

    Args:
        path: The file; one JSON object per line with the fields of :class:`EditRequest`.

    Returns:
        The requests, in the order of the file. Duplicates are kept, with a warning in the log.

    Raises:
        RequestError: Listing together, by line, everything that is wrong: no such file, a directory, nothing in it,
            not UTF-8, not JSON, not an object, wrong or unknown fields, and contradicting requests.
    """
    lines, requests, problems = _read_records(path, EditRequest)
    issues = check_requests(requests)
    for conflict in issues.contradictions:
        targets = ", ".join(f"{quoted(requests[i].target_new)} (line {lines[i]})" for i in conflict.indices)
        problems.append(
            f"{os.fspath(path)}, lines {_join(lines[i] for i in conflict.indices)}: contradiction: the prompt "
            f"{quoted(conflict.prompt)} is given different target_new: {targets}; keep one"
        )
    if problems:
        raise RequestError(problems, f"{os.fspath(path)}: {len(problems)} problems")
    for conflict in issues.duplicates:
        logger.warning(
            "%s, lines %s: the same request (%s -> %s) more than once; it will count more than once",
            os.fspath(path),
            _join(lines[i] for i in conflict.indices),
            quoted(conflict.prompt),
            quoted(conflict.targets[0]),
        )
    _warn_of_shared_ids(path, requests, lines)
    return requests


def _warn_of_shared_ids(path: str | os.PathLike[str], requests: Sequence[EditRequest], lines: Sequence[int]) -> None:
    """Reports and messages call a request by its case id: two of one name cannot be told apart there."""
    places: dict[int | str, list[int]] = {}
    for line, request in zip(lines, requests, strict=True):
        if request.case_id is not None:
            places.setdefault(request.case_id, []).append(line)
    shared = {name: where for name, where in places.items() if len(where) > 1}
    if shared:
        name, where = next(iter(shared.items()))
        logger.warning(
            "%s: %d case_ids are given more than once, %r in lines %s; in reports they cannot be told apart",
            os.fspath(path),
            len(shared),
            name,
            _join(where),
        )


def write_requests(path: str | os.PathLike[str], requests: Iterable[EditRequest]) -> None:
    """Write requests as JSON Lines, completely or not at all; :func:`read_requests` gives equal requests back.

    Fields left at their default are left out.

    Raises:
        RequestError: There are no requests, or some contradict each other: the file could not be read back.
        OSError: The file cannot be written.
    """
    requests = list(requests)
    contradictions = check_requests(requests).contradictions
    if contradictions:
        raise RequestError(
            [
                f"{os.fspath(path)} was not written: requests {_join(c.indices)} contradict each other: the prompt "
                f"{quoted(c.prompt)} is given {' and '.join(map(quoted, c.targets))}; keep one"
                for c in contradictions
            ]
        )
    write_records(path, requests, "requests")


def read_probes(path: str | os.PathLike[str]) -> list[Probe]:
    """Read probes (untouched facts, for instance) from JSON Lines: objects ``{"prompt", "answer"}`` or strings.

    An object may also have ``aliases``, a list of other right answers.

    A line with a ``target_new`` is read as an edit request, and its prompt and ``target_new`` are taken as a fact and
    its true answer: facts to watch may be kept in the format of the facts to edit.

    Raises:
        RequestError: As :func:`read_requests`.
    """
    _, records, problems = _read_records(path, Probe, EditRequest)
    if problems:
        raise RequestError(problems, f"{os.fspath(path)}: {len(problems)} problems")
    return [
        Probe(prompt=record.prompt, answer=record.target_new) if isinstance(record, EditRequest) else record
        for record in records
    ]


def read_records(path: str | os.PathLike[str], kind: type[_R]) -> list[_R]:
    """Read records of one kind from JSON Lines.

    Raises:
        RequestError: Listing together, by line, everything that is wrong.
    """
    _, records, problems = _read_records(path, kind)
    if problems:
        raise RequestError(problems, f"{os.fspath(path)}: {len(problems)} problems")
    return [record for record in records if isinstance(record, kind)]


def write_probes(path: str | os.PathLike[str], probes: Iterable[Probe]) -> None:
    """Write probes as JSON Lines, completely or not at all; :func:`read_probes` gives equal probes back.

    Raises:
        RequestError: There are no probes.
        OSError: The file cannot be written.
    """
    write_records(path, list(probes), "probes")


def _join(numbers: Iterable[int]) -> str:
    texts = [str(number) for number in numbers]
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))


def write_records(path: str | os.PathLike[str], records: Sequence[Record], what: str) -> None:
    """Write records as JSON Lines, completely or not at all; fields left at their default are left out.

    Raises:
        RequestError: There are none; they are called ``what``.
        OSError: The file cannot be written.
    """
    if not records:
        raise RequestError(f"{os.fspath(path)} was not written: there are no {what}")
    rows = (record.model_dump(mode="json", exclude_defaults=True) for record in records)
    atomic_write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _read_records(
    path: str | os.PathLike[str], kind: type[_R], edits: type[_E] | None = None
) -> tuple[list[int], list[_R | _E], list[str]]:
    """The records of a file with their line numbers, and what is wrong with the other lines.

    Lines with a target_new are read as ``edits``, if that is given, all others as ``kind``.
    """
    name = os.fspath(path)
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise RequestError(f"{name}: no such file: check the path (looked in {Path.cwd()})") from None
    except IsADirectoryError:
        raise RequestError(f"{name}: is a directory: name a JSON Lines file in it") from None
    except OSError as error:
        raise RequestError(f"{name}: cannot be read: {error.strerror or error}") from error
    lines: list[int] = []
    records: list[_R | _E] = []
    problems: list[str] = []
    seen = False
    # Only a newline ends a line: JSON strings may hold U+2028 and others at which str.splitlines would cut.
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not raw.strip():
            continue
        seen = True
        where = f"{name}, line {number}"
        try:
            value = _parse_line(raw, accepts_text=kind is Probe)
        except ValueError as error:
            problems.append(f"{where}: {error}")
            continue
        try:
            is_edit = isinstance(value, Mapping) and "target_new" in value
            records.append((edits if edits and is_edit else kind).model_validate(value))
        except ValidationError as error:
            case = f", case {value['case_id']!r}" if isinstance(value, Mapping) and "case_id" in value else ""
            problems += _explain(f"{where}{case}", error)
        else:
            lines.append(number)
    if not seen:
        raise RequestError(f"{name}: is empty: write one JSON object per line, with at least a prompt")
    return lines, records, problems


def _parse_line(raw: bytes, *, accepts_text: bool) -> Any:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start + 1} of the line): save the file as UTF-8") from None
    try:
        value = json.loads(text, object_pairs_hook=_object_without_repeats)
    except json.JSONDecodeError as error:
        hint = "write one complete JSON object on one line"
        if text.lstrip().startswith("["):
            hint = "this looks like a JSON array; " + hint + ", without brackets and commas around them"
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}; {hint}") from None
    except RecursionError:
        raise ValueError("not usable JSON: nested too deeply") from None
    if isinstance(value, dict) or (accepts_text and isinstance(value, str)):
        return value
    kind = {list: "an array", str: "a string", type(None): "null"}.get(type(value), f"the value {str(value)[:40]}")
    raise ValueError(f'{kind} instead of a JSON object: write one object per line, as in {{"prompt": ...}}')


def _object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field {repeated!r} is given twice: keep one")
    return record


def _explain(where: str, error: ValidationError) -> list[str]:
    lines = []
    for detail in error.errors(include_url=False):
        field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"]).lstrip(".")
        lines.append(f"{where}, field '{field}': {detail['msg']}" if field else f"{where}: {detail['msg']}")
    return lines
