"""What an extension's command may use of the command line: this module and no other of :mod:`corsa_plugins.cli`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from corsa_plugins.cli.terminal import show

__all__ = ["passthrough", "show"]

_F = TypeVar("_F", bound=Callable[..., Any])


def passthrough(function: _F) -> _F:
    """Mark a command that reads its own arguments.

    It is called with the list of all its arguments, ``--help`` among them, and returns an exit code or ``None``.
    """
    function.passthrough = True  # type: ignore[attr-defined]
    return function
