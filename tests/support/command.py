"""What a call of the script gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """Of one call."""

    exit_code: int
    output: str
    stderr: str


Command = Callable[..., Result]
