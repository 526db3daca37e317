"""Paths of fields in a record, such as ``requested_rewrite[].target_new.str``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["covers", "has_field", "leaf_fields"]


def has_field(record: Any, path: str) -> bool:
    """Whether a record holds a value, not null, at a path; lists are entered at their first element."""
    value = record
    for part in path.split("."):
        name, brackets, _ = part.partition("[]")
        if not isinstance(value, Mapping) or value.get(name) is None:
            return False
        value = value[name]
        if brackets:
            if not isinstance(value, list) or not value:
                return False
            value = value[0]
    return value is not None


def leaf_fields(record: Mapping[str, Any]) -> Iterator[str]:
    """The path of every value of a record that is not null and not empty, once for each value."""
    stack: list[tuple[str, Any]] = [(str(name), value) for name, value in record.items()]
    while stack:
        path, value = stack.pop()
        if isinstance(value, Mapping):
            stack.extend((f"{path}.{name}", inner) for name, inner in value.items())
        elif isinstance(value, list):
            stack.extend((f"{path}[]", inner) for inner in value)
        elif value is not None and value != "":
            yield path


def covers(field: str, path: str) -> bool:
    """Whether a field is at ``path`` or holds what is there."""
    return path == field or path.startswith((f"{field}.", f"{field}["))
