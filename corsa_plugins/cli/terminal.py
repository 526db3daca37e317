"""What a command shows on the terminal."""

from __future__ import annotations

from typing import Any

__all__ = ["show"]


def show(table: Any) -> None:
    """Print a rich table; where the output goes to a file there is no width to keep to, and no cell is cut."""
    from rich.console import Console

    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)
