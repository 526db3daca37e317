"""Types in words, for messages: ``Annotated[int, Field(ge=1)] | None`` is "an integer of at least 1, or None"."""

from __future__ import annotations

import types
import typing
from collections.abc import Collection, Iterable, Mapping
from dataclasses import is_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

__all__ = ["in_words"]

_WORDS: Mapping[Any, str] = {
    bool: "true or false", int: "an integer", float: "a number", str: "text", type(None): "None", Any: "anything",
}  # fmt: skip

_BOUNDS: Mapping[str, str] = {
    "gt": "over", "ge": "of at least", "lt": "under", "le": "at most", "min_length": "of a length of at least",
}  # fmt: skip


def in_words(hint: Any) -> str:
    """What a type takes, to go behind "it must be": the ``description`` of its ``Field``, if that has one."""
    if get_origin(hint) is Annotated:
        kind, *extras = get_args(hint)
        described = [extra.description for extra in extras if isinstance(extra, FieldInfo) and extra.description]
        return described[-1] if described else in_words(kind) + _limits(extras)
    if hint in _WORDS:
        return _WORDS[hint]
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (types.UnionType, typing.Union):
        return ", or ".join(map(in_words, arguments))
    if issubclass(origin, Mapping):
        return "a mapping"
    if issubclass(origin, Collection) and arguments:
        return f"a list, each item {in_words(arguments[0])}"
    return f"of class {origin.__name__}{', or a mapping of its settings' if is_dataclass(origin) else ''}"


def _limits(extras: Iterable[Any]) -> str:
    """The bounds among the extras of an ``Annotated``, in words."""
    bounds = [bound for extra in extras for bound in (extra.metadata if isinstance(extra, FieldInfo) else [extra])]
    limits = {name: getattr(bound, name) for name in _BOUNDS for bound in bounds if hasattr(bound, name)}
    if limits.keys() == {"ge", "le"}:
        return f" between {limits['ge']:g} and {limits['le']:g}"
    said = [f"{_BOUNDS[name]} {limit:g}" for name, limit in limits.items()]
    return f" {' and '.join(said)}" if said else ""
