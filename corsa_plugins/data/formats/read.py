"""Reading a published format into edit requests."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice

from pydantic import ValidationError

from corsa_plugins.data.code_problems import CodeProblem
from corsa_plugins.data.formats.base import Drops, Format, FormatError, FormatResult, Problem, RecordError
from corsa_plugins.data.formats.fields import kind, printable
from corsa_plugins.data.formats.paths import covers, has_field, leaf_fields
from corsa_plugins.data.formats.registry import format_names, formats, get_format
from corsa_plugins.data.formats.source import HUB_PREFIX, Raw, open_source
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError

__all__ = ["detect_format", "read_format"]

logger = logging.getLogger(__name__)

SAMPLE = 20
"""How many records are looked at to recognise a format."""


def read_format(
    name: str | None,
    path_or_hub: str | os.PathLike[str],
    *,
    strict: bool = False,
    limit: int | None = None,
    split: str | None = None,
) -> FormatResult:
    """Read a published data set of edits.

    JSON Lines are read line by line; JSON lists are loaded whole.

    Args:
        name: The format, one of :func:`corsa_plugins.data.formats.format_names`; ``None`` to tell it from the fields.
        path_or_hub: A file (JSON, JSON Lines, Parquet), or ``"hub:owner/name"`` for a data set on the Hub, or
            ``"hub:"`` for the one that the format documents.
        strict: Stop at the first malformed record, instead of skipping and reporting it.
        limit: Read at most so many records.
        split: Which split of a data set on the Hub; by default the first that the format documents.

    Returns:
        The requests, the malformed records, and what was dropped. Contradictions among the requests are left in.

    Raises:
        FormatError: The source cannot be read, no record of it can be converted, the format cannot be told, or, if
            strict, a record is malformed.
        SettingError: An unknown format or split, a limit under 1.
        MissingExtraError: Parquet or the Hub is asked for and ``datasets`` is not installed.
    """
    if limit is not None and limit < 1:
        raise SettingError(f"limit is {limit}: it should be at least 1")
    source = os.fspath(path_or_hub)
    form = get_format(name) if name is not None else None
    if form is None and source == HUB_PREFIX:
        raise SettingError("which data set on the Hub? Give the format, or the name of the data set")
    raws = _safely(open_source(source, form.hub if form else None, split), source)
    if form is None:
        sample = list(islice(raws, SAMPLE))
        form = _recognise(sample, source)
        raws = chain(sample, raws)
    if source == HUB_PREFIX and form.hub:
        source += form.hub.name
    code: list[CodeProblem] = []
    requests, problems, dropped, mapping, read = _convert(form, islice(raws, limit), source, strict, code)
    if not read:
        raise FormatError(f"{source}: holds no records")
    if not requests:
        raise FormatError(f"{source}: none of {read} records could be read as {form.name}; is it that?", problems)
    if form.finish:
        requests = form.finish(requests)
    logger.info("%s: %d records, %d requests, %d malformed", source, read, len(requests), len(problems))
    return FormatResult(requests, problems, dict(dropped), mapping, form.name, source, read, tuple(code))


def detect_format(path: str | os.PathLike[str]) -> str:
    """The name of the format that a file is in, by the fields of its first records.

    Raises:
        FormatError: None fits, or several that read it differently; the message lists them.
    """
    source = os.fspath(path)
    return _recognise(list(islice(_safely(open_source(source, None, None), source), SAMPLE)), source).name


def _safely(raws: Iterator[Raw], source: str) -> Iterator[Raw]:
    """The records, with what goes wrong half way through a file said as at its beginning."""
    try:
        yield from raws
    except OSError as error:
        raise FormatError(f"{source}: cannot be read: {error.strerror or error}") from error


def _recognise(sample: Iterable[Raw], source: str) -> Format:
    known = formats()
    votes: dict[str, int] = {}
    keys: set[str] = set()
    for raw in sample:
        if not isinstance(raw.value, Mapping):
            continue
        keys.update(printable(str(name), 40) for name in raw.value)
        for form in known:
            if any(all(has_field(raw.value, path) for path in paths) for paths in form.signatures):
                votes[form.name] = votes.get(form.name, 0) + 1
    best = [form for form in known if votes.get(form.name, 0) == max(votes.values(), default=-1)]
    if not best:
        if {"prompt", "target_new"} <= keys:
            raise FormatError(f"{source}: not a format known here, and perhaps edit requests already; give --format")
        seen = f"its fields are {', '.join(sorted(keys)[:12])}" if keys else "it holds no objects"
        raise FormatError(f"{source}: not a format known here ({seen}); the formats are {', '.join(format_names())}")
    readers = list({form.convert: form for form in reversed(best)}.values())[::-1]
    if len(readers) > 1:
        listed = "\n".join(f"  {form.name:<24}{form.description}" for form in best)
        raise FormatError(f"{source}: several formats have these fields; say which with --format:\n{listed}")
    return readers[0]


def _convert(
    form: Format, raws: Iterable[Raw], source: str, strict: bool, code: list[CodeProblem]
) -> tuple[list[EditRequest], list[Problem], Drops, dict[str, str], int]:
    requests: list[EditRequest] = []
    problems: list[Problem] = []
    dropped = Drops()
    used: set[str] = set()
    fates: dict[str, tuple[str, bool]] = {}  # the same few paths come in every record
    read = 0
    for raw in raws:
        read += 1
        drops = Drops()
        try:
            if raw.error is not None:
                raise RecordError(raw.error)
            if not isinstance(raw.value, Mapping):
                raise RecordError(f"{kind(raw.value)} instead of an object")
            requests += form.convert(raw.value, raw.index, drops)
            code += _code(form, raw)
        except RecordError as error:
            problems.append(Problem(raw.index, printable(str(error)), raw.line))
            if strict:
                raise FormatError(f"{source}: stopped at a malformed record", problems) from None
            continue
        dropped.update(drops)
        for path in leaf_fields(raw.value):
            if path not in fates:
                fates[path] = _fate(form, path)
            field, is_used = fates[path]
            if is_used:
                used.add(field)
            else:
                dropped[field] += 1
    mapping = {field: becomes for field, becomes in form.mapping.items() if field in used}
    return requests, problems, dropped, mapping, read


def _code(form: Format, raw: Raw) -> list[CodeProblem]:
    """The programming problems in a record; none where they cannot be run, which is no fault of the requests."""
    try:
        return form.code(raw.value, raw.index) if form.code else []
    except (RecordError, ValidationError):
        return []


def _fate(form: Format, path: str) -> tuple[str, bool]:
    """The field that holds the value at ``path``, as the format names it, and whether it is used."""
    for field in form.mapping:
        if covers(field, path):
            return field, True
    named = next((field for field in form.dropped if covers(field, path)), printable(path, 120))
    return named.replace("[]", ""), False
