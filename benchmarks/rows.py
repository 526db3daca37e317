"""Results as JSON Lines, a line for each finished run: a stopped benchmark goes on where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from corsa_plugins.journal import Journal, read_journal

__all__ = ["append_row", "read_rows"]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows, each of which says what it is of; none where there is no file yet."""
    return read_journal(path, headed=False).items if path.exists() else []


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add a row behind the others."""
    with Journal(path) as journal:
        journal.append(row)
