"""Writing a file so that nobody ever sees half of it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

__all__ = ["atomic_write_text"]


def atomic_write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write ``text`` (UTF-8, newlines as they are) to ``path``, completely or not at all.

    The text goes to a temporary file in the same folder, which then takes the place of ``path``. Whatever
    interrupts it, ``path`` holds the old content or the new one, and no temporary file is left. Missing parent
    folders are made; a symbolic link is followed; the mode of an existing file is kept.

    Returns:
        The path written to.

    Raises:
        OSError: The folder cannot be written to, or ``path`` is a directory.
    """
    path = Path(path)
    target = path.resolve()
    if target.is_dir():
        raise IsADirectoryError(f"{path} is a directory: name a file in it")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        mode = target.stat().st_mode & 0o777
    else:
        umask = os.umask(0)
        os.umask(umask)
        mode = 0o666 & ~umask
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, mode)  # mkstemp makes the file private; a result file is not
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    return path
