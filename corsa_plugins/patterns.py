"""Regular expressions out of files: what would not end on a name of a module is refused before it is tried."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import import_module
from typing import Any

__all__ = ["check_pattern"]

_PARSER: Any = import_module("re._parser")
"""How Python itself reads an expression."""

_LENGTH = 64
"""Of a name, about."""

_MOST = 1e11
"""Ways to try, counted generously: of six repetitions one after the other there are as many."""

_REPEATS = (_PARSER.MAX_REPEAT, _PARSER.MIN_REPEAT)


def check_pattern(pattern: str) -> None:
    """See that an expression can be tried on a name in a moment: no repetitions of repetitions or alternatives, and few
    one after the other.

    Raises:
        ValueError: It cannot, or is no regular expression.
    """
    try:
        ways = _ways(_PARSER.parse(pattern))
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{pattern[:80]!r} is no regular expression ({error})") from error
    if ways > _MOST:
        raise ValueError(
            f"the regular expression {pattern[:80]!r} may take forever: write it without nested repetitions"
        )


def _ways(parts: Iterable[Any]) -> float:
    """How many ways there are to try a sequence, at most."""
    ways = 1.0
    for kind, argument in parts:
        ways = min(ways * _ways_of(kind, argument), 1e300)
    return ways


def _ways_of(kind: Any, argument: Any) -> float:
    if kind in _REPEATS:
        least, most, body = argument
        inside = _ways(body)
        if most > 1 and inside > 1:
            return float(min(inside ** min(int(most), _LENGTH), 1e300)) if inside < 1e4 else 1e300
        return inside * min(float(int(most) - int(least) + 1) ** 2, _LENGTH)
    if kind is _PARSER.BRANCH:
        return 4 * max(_ways(option) for option in argument[1])
    ways = 1.0
    for part in argument if isinstance(argument, tuple) else (argument,):
        if isinstance(part, _PARSER.SubPattern):  # groups, looks ahead and behind, conditions
            ways = min(ways * _ways(part), 1e300)
    return ways
