"""Taking texts, lists and objects out of records that may hold anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from corsa_plugins.data.formats.base import RecordError

__all__ = [
    "as_text",
    "first_text",
    "kind",
    "listed",
    "objects",
    "optional_text",
    "printable",
    "record_at",
    "require_text",
    "texts",
    "texts_in",
]


def printable(text: str, longest: int = 600) -> str:
    """Text from a record, so that it can be written to any terminal: cut, and without halves of surrogate pairs."""
    cut = text if len(text) <= longest else f"{text[:longest]} ..."
    return cut.encode("utf-8", "backslashreplace").decode("utf-8")


def kind(value: Any) -> str:
    """What a JSON value is called in a message."""
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")


def as_text(value: Any) -> str | None:
    """``value`` as text without space around it: a string, or a number as it is written; ``None`` for the rest."""
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, float):
        return str(value) if math.isfinite(value) else None
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    try:
        return str(value)
    except ValueError:  # more digits than Python converts
        return None


def require_text(record: Mapping[str, Any], name: str, where: str = "") -> str:
    """The text of a field that a request cannot do without.

    Raises:
        RecordError: It is missing, blank, or not text.
    """
    value = record.get(name)
    text = as_text(value)
    if text is None:
        wrong = "is missing" if name not in record else "is blank" if isinstance(value, str) else f"is {kind(value)}"
        raise RecordError(f"field '{where}{name}' {wrong}; it should be text")
    return text


def optional_text(record: Mapping[str, Any], name: str, where: str = "") -> str | None:
    """The text of a field that may be missing, null or blank.

    Raises:
        RecordError: It is something else than text.
    """
    value = record.get(name)
    if value is None or value == "":
        return None
    return require_text(record, name, where) if not isinstance(value, str) else as_text(value)


def record_at(record: Mapping[str, Any], name: str, where: str = "") -> Mapping[str, Any]:
    """The object in a field.

    Raises:
        RecordError: It is missing or not an object.
    """
    value = record.get(name)
    if not isinstance(value, Mapping):
        wrong = f"is {kind(value)}" if name in record else "is missing"
        raise RecordError(f"field '{where}{name}' {wrong}; it should be an object")
    return value


def listed(record: Mapping[str, Any], name: str, where: str = "") -> list[Any]:
    """The list in a field; empty when it is missing or null.

    Raises:
        RecordError: It is something else.
    """
    value = record.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise RecordError(f"field '{where}{name}' is {kind(value)}; it should be a list")
    return value


def objects(record: Mapping[str, Any], name: str, where: str = "") -> list[Mapping[str, Any]]:
    """The list of objects in a field; empty when it is missing or null.

    Raises:
        RecordError: It is not a list, or something in it is not an object.
    """
    items = listed(record, name, where)
    for at, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise RecordError(f"field '{where}{name}[{at}]' is {kind(item)}; it should be an object")
    return items


def texts(record: Mapping[str, Any], name: str, where: str = "") -> list[str]:
    """The texts in a field that holds a list of them or a single one; blank ones are left out.

    Raises:
        RecordError: Something in it is not text.
    """
    value = record.get(name)
    items = value if isinstance(value, list) else [] if value is None else [value]
    kept = []
    for at, item in enumerate(items):
        text = as_text(item)
        if text is not None:
            kept.append(text)
        elif item is not None and not isinstance(item, str):
            raise RecordError(f"field '{where}{name}[{at}]' is {kind(item)}; it should be text")
    return kept


def texts_in(value: Any) -> list[str]:
    """The texts of a list of lists of texts, however deep, in order; anything else in it is left out."""
    kept = []
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            stack.extend(reversed(item))
            continue
        text = as_text(item)
        if text is not None:
            kept.append(text)
    return kept


def first_text(value: Any) -> tuple[str | None, int]:
    """The first of :func:`texts_in`, and how many more there are."""
    every = texts_in(value)
    return (every[0], len(every) - 1) if every else (None, 0)
