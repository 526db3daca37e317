"""Paths as people write them."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["user_path"]


def user_path(path: str | os.PathLike[str]) -> Path:
    """The path, with ``~`` or ``~name`` at its beginning for a home; of a name that nobody has it stays as it is, a
    path that is not there, where :meth:`pathlib.Path.expanduser` raises."""
    return Path(os.path.expanduser(os.fspath(path)))
