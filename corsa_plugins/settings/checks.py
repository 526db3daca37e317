"""What the fields of a dataclass may hold, checked by pydantic as their annotations say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from corsa_plugins.settings.problems import InvalidSettingsError, Problem, problem
from corsa_plugins.settings.words import in_words

__all__ = ["check_fields", "missing_fields"]


def check_fields(kind: type, values: Mapping[str, Any], *, lenient: bool = False) -> dict[str, Any]:
    """The values of a dataclass's fields, of the types that it declares for them.

    Args:
        kind: The dataclass.
        values: By name, of the fields that are to be checked; other names are left out.
        lenient: Take text for numbers (``"5e-1"``, which YAML reads as text) and 20.0 for an integer; but no lists for
            tuples.

    Raises:
        InvalidSettingsError: With every value that is of another type, or out of its range.
    """
    checked: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, check in _checks(kind).items():
        if name not in values:
            continue
        try:
            checked[name] = check.lenient(values[name]) if lenient else check.strict(_tupled(values[name]))
        except ValidationError as error:
            problems += check.problems(values[name], error)
    if problems:
        raise InvalidSettingsError(problems)
    return checked


class _Check:
    """What one field may hold."""

    def __init__(self, name: str, hint: Any) -> None:
        self.name = name
        self.hint = hint
        # A settings class brings its own schema, and pydantic takes no configuration beside that of a class.
        config = None if is_dataclass(hint) else ConfigDict(allow_inf_nan=False, arbitrary_types_allowed=True)
        self._adapter: TypeAdapter[Any] = TypeAdapter(hint, config=config)

    def strict(self, value: Any) -> Any:
        return self._adapter.validate_python(value, strict=True)

    def lenient(self, value: Any) -> Any:
        try:
            return self.strict(value)
        except ValidationError:
            # To pydantic True is 1 where it is lenient; a switch where a number belongs is a mistake all the same.
            if any(isinstance(item, bool) for item in (value if isinstance(value, list | tuple) else [value])):
                raise
        return self._adapter.validate_python(value, strict=False)

    def problems(self, value: Any, error: ValidationError) -> list[Problem]:
        for detail in error.errors():
            cause = detail.get("ctx", {}).get("error")
            if isinstance(cause, InvalidSettingsError):
                return [Problem(f"{self.name}.{name}", text) for name, text in cause.problems]
            if isinstance(cause, ValueError) and str(cause):
                return [problem(self.name, value, str(cause))]
        wanted = f"it must be {in_words(self.hint)}"
        if any(detail["type"] == "finite_number" for detail in error.errors()):
            wanted = wanted.replace("a number", "a finite number")
        if isinstance(value, str) and self._is_number(value):
            wanted += " (to YAML, a number in quotes or without a point, such as 5e-4, is text: write 5.0e-4)"
        return [problem(self.name, value, wanted)]

    def _is_number(self, text: str) -> bool:
        """Whether it would do if it were no text."""
        try:
            float(text)
            self.lenient(text)
        except ValueError:
            return False
        return True


@cache
def _checks(kind: type) -> dict[str, _Check]:
    """By the name of the field."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: _Check(field.name, hints[field.name]) for field in fields(kind)}


def missing_fields(kind: type, data: Mapping[str, Any]) -> list[Problem]:
    """The fields of the dataclass that have no default and are not in ``data``, with what they must be."""
    return [
        Problem(field.name, f"is missing: it must be {in_words(_checks(kind)[field.name].hint)}")
        for field in fields(kind)
        if field.init and field.name not in data and field.default is MISSING and field.default_factory is MISSING
    ]


def _tupled(value: Any) -> Any:
    """Lists as tuples: YAML and JSON have no other sequence, and settings are frozen."""
    return tuple(map(_tupled, value)) if isinstance(value, list | tuple) else value
