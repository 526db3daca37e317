"""JSON and YAML from files and people: whatever they hold, it is a value or a ``ValueError``."""

from __future__ import annotations

import json
import math
from typing import Any

__all__ = ["is_number", "json_value", "yaml_value"]


def json_value(text: str | bytes) -> Any:
    """What a text in JSON says.

    Raises:
        ValueError: It is no JSON, or nested deeper than Python's own reader goes, of which that makes another error.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a finite number that a float holds; true and false are none."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def yaml_value(text: str) -> Any:
    """What a text in YAML says, plain data.

    Raises:
        ValueError: It is no YAML, or holds half characters. PyYAML has errors of many classes for what its constructors
            stumble over, a date that there is not, for instance, or a number of 5,000 digits.
    """
    import yaml

    try:
        value = yaml.safe_load(text)
        json.dumps(value, default=str, ensure_ascii=False).encode("utf-8")
    except Exception as error:
        raise ValueError(str(error) or repr(error)) from error
    return value
