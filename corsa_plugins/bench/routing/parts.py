"""Requests in parts, for an adapter each."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

from corsa_plugins.data.reading import write_requests
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError
from corsa_plugins.files import atomic_directory

__all__ = ["SHARED_FIELDS", "request_template", "shared_value", "split_requests", "write_parts"]

SHARED_FIELDS = ("template", "subject", "target_new", "target_old")
"""What the requests of a part may have in common; ``template`` is the prompt without its subject."""


def split_requests(
    requests: Sequence[EditRequest], by: int | Callable[[EditRequest], Hashable], parts: int | None = None
) -> list[list[EditRequest]]:
    """Split requests into parts, each in the order of the requests.

    Args:
        requests: All of them.
        by: The number of parts, each of consecutive requests and of equal size up to one; or a function that gives
            what the requests of a part have in common (:func:`request_template`, :func:`shared_value`): parts then come
            in the order of their first request.
        parts: With a function: put the groups together to so many parts, the largest first, each into the part that
            is smallest so far.

    Raises:
        SettingError: More parts than requests or groups, or less than one.
    """
    if callable(by):
        return [[requests[index] for index in part] for part in _grouped(requests, by, parts)]
    if parts is not None:
        raise SettingError(f"parts is {parts} beside {by} parts: it goes with a function that makes the groups")
    if not 1 <= by <= len(requests):
        raise SettingError(f"{len(requests)} requests cannot be split into {by} parts: give 1 to {len(requests)}")
    ends = [len(requests) * part // by for part in range(by + 1)]
    return [list(requests[start:end]) for start, end in itertools.pairwise(ends)]


def _grouped(
    requests: Sequence[EditRequest], by: Callable[[EditRequest], Hashable], parts: int | None
) -> list[list[int]]:
    by_value: dict[Hashable, list[int]] = {}
    for index, request in enumerate(requests):
        by_value.setdefault(by(request), []).append(index)
    groups = list(by_value.values())
    if parts is None:
        return groups
    if not 1 <= parts <= len(groups):
        raise SettingError(f"{len(groups)} groups cannot be put into {parts} parts: give 1 to {len(groups)}")
    packed: list[list[int]] = [[] for _ in range(parts)]
    for group in sorted(groups, key=len, reverse=True):
        min(packed, key=len).extend(group)
    return sorted(sorted(part) for part in packed)


def request_template(request: EditRequest) -> str:
    """The prompt without its subject, ``"The capital of {} is"``: what requests of one relation often share.

    Raises:
        SettingError: The request has no subject.
    """
    if request.subject is None:
        raise SettingError(f"{request.name()} has no subject: give it one, or split by something else")
    return request.prompt.replace(request.subject, "{}")


def shared_value(field: str) -> Callable[[EditRequest], str]:
    """A function for :func:`split_requests` that keeps requests together that share a field.

    Args:
        field: One of :data:`SHARED_FIELDS`.

    Raises:
        SettingError: There is no such field; by the function, that a request lacks it.
    """
    if field not in SHARED_FIELDS:
        raise SettingError(f"field is {field!r}: it must be one of {', '.join(SHARED_FIELDS)}")
    if field == "template":
        return request_template

    def value(request: EditRequest) -> str:
        shared = getattr(request, field)
        if shared is None:
            raise SettingError(f"{request.name()} has no {field}: give it one, or split by something else")
        return str(shared)

    return value


def write_parts(parts: Sequence[Sequence[EditRequest]], folder: str | os.PathLike[str]) -> list[Path]:
    """Write each part to a file of its own, ``part-1.jsonl``, ``part-2.jsonl``, ...; all of them, or none.

    The numbers have as many digits as the last one needs, so that the files sort as the parts do.

    Returns:
        The paths, in the order of the parts.

    Raises:
        SettingError: The folder is there, and something is in it.
        RequestError: The requests of a part contradict each other.
        OSError: It cannot be written.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise SettingError(f"{target} exists and is not an empty folder: name a new one")
    width = len(str(len(parts)))
    names = [f"part-{number:0{width}}.jsonl" for number in range(1, len(parts) + 1)]
    with atomic_directory(target) as unfinished:
        for name, part in zip(names, parts, strict=True):
            write_requests(unfinished / name, part)
    return [target / name for name in names]
