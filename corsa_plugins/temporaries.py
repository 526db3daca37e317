"""Files and folders that are being written beside their place, and those whose writers were killed.

A temporary one of ``NAME`` is ``.NAME.xxxxxxxx.new`` while it is empty, and ``.part`` once its writer has a lock on it,
which ends with the writer's process, however that ends. So one that can be locked has been abandoned.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing says there whether a process is still at work on a file
    fcntl = None  # type: ignore[assignment]

__all__ = ["remove_abandoned", "temporary_beside"]

_DRAWN = re.compile(r"\.[a-z0-9_]{8}\.(new|part)")  # of the letters that ``tempfile`` draws


@contextmanager
def temporary_beside(target: Path, *, folder: bool = False) -> Iterator[Path]:
    """A new, empty file or folder in the folder of ``target``, locked for as long as the block lasts.

    What is done with it, and that it goes, is the caller's to see to. What killed processes have left of others for
    the same ``target`` goes first.

    Raises:
        OSError: Nothing can be written there.
    """
    remove_abandoned(target)
    handle, part = _begin(target, folder)
    try:
        yield part
    finally:
        if handle is not None:
            os.close(handle)


def remove_abandoned(target: Path) -> None:
    """Remove what killed processes have left beside ``target``; an old folder that they had moved away comes back.

    Whatever somebody is at work on stays, and everything where a file system has no locks.
    """
    if fcntl is None:
        return
    prefix = f".{target.name}"
    for left in target.parent.glob(f"{glob.escape(prefix)}.????????.*"):
        if not _DRAWN.fullmatch(left.name.removeprefix(prefix)):
            continue
        try:
            handle = _lock(left)
        except OSError:
            continue  # its writer has it, or has just finished, or nobody can say
        try:
            if left.suffix == ".new":
                _remove_empty(left)
            else:
                _remove(left, target)
        finally:
            os.close(handle)


def _begin(target: Path, folder: bool) -> tuple[int | None, Path]:
    """A temporary one with a lock, which it has before it is named ``.part``; ``None`` where there are no locks."""
    while True:
        new = _make(target, folder)
        handle = None
        try:
            handle = _lock(new)
        except (BlockingIOError, FileNotFoundError):
            continue  # found by another process before it was locked, and removed as abandoned
        except (OSError, NotImplementedError):
            pass
        part = new.with_suffix(".part")
        try:
            os.replace(new, part)
        except BaseException as error:
            if handle is not None:
                os.close(handle)
            if not isinstance(error, FileNotFoundError):  # else it was removed as above
                _remove_empty(new)
                raise
        else:
            return handle, part


def _make(target: Path, folder: bool) -> Path:
    prefix, suffix = f".{target.name}.", ".new"
    try:
        if folder:
            return Path(tempfile.mkdtemp(dir=target.parent, prefix=prefix, suffix=suffix))
        opened, name = tempfile.mkstemp(dir=target.parent, prefix=prefix, suffix=suffix)
    except OSError as error:  # of the name that was drawn, which says nothing to anybody
        raise OSError(error.errno, error.strerror, str(target)) from error
    os.close(opened)
    return Path(name)


def _remove_empty(new: Path) -> None:
    """Remove what nothing was written to yet; whatever holds something is not ours."""
    with suppress(OSError):
        if new.is_dir():
            new.rmdir()
        elif not new.stat().st_size:
            new.unlink()


def _remove(part: Path, target: Path) -> None:
    old = part.with_suffix(".old")
    if old.exists() and not target.exists():
        os.rename(old, target)
    for left in (old, part):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _lock(path: Path) -> int:
    """An open handle with the only lock on a file or folder.

    Raises:
        FileNotFoundError: It is not there.
        BlockingIOError: Somebody has it.
        NotImplementedError: There are no locks on this system.
        OSError: There are none on this file system.
    """
    if fcntl is None:
        raise NotImplementedError
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(handle)
        raise
    return handle
