"""Writing a file so that nobody ever sees half of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["atomic_directory", "atomic_write_bytes", "atomic_write_text"]


def atomic_write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write ``text`` (UTF-8, newlines as they are) to ``path``, as :func:`atomic_write_bytes` does."""
    return atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_bytes(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write ``content`` to ``path``, completely or not at all.

    The content goes to a temporary file in the same folder, which then takes the place of ``path``. Whatever
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
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, mode)  # mkstemp makes the file private; a result file is not
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    return path


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A new folder to fill, which becomes ``path``, completely or not at all.

    Within the block, files are written to a temporary folder beside ``path``. Afterwards it takes the place of
    ``path``, and what was there before is deleted; if anything is raised, ``path`` is as it was and nothing is left
    behind. Where the process is killed between the two renamings that replace an existing folder, the old
    content is beside it under ``.NAME.*.old``.

    Raises:
        NotADirectoryError: ``path`` is a file.
        OSError: The folder cannot be written to; for instance the disk is full.
    """
    path = Path(path)
    target = path.resolve()
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{path} is a file: name a folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part"))
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o777 & ~umask)  # mkdtemp makes the folder private
        if target.exists():
            _replace_directory(temporary, target)
        else:
            os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _replace_directory(new: Path, target: Path) -> None:
    old = new.with_suffix(".old")
    try:
        os.rename(target, old)
        os.rename(new, target)
    except BaseException:
        # An interruption may come between any two of these lines, also after both were renamed.
        if not target.exists():
            os.rename(old, target)
        shutil.rmtree(old, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
