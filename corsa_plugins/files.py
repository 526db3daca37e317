"""Writing files and folders so that nobody ever sees half of one, and so that no two programs write the same one.

Written by hand: of the libraries for it, atomicwrites is no longer maintained, and none does folders or keeps a mode.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from corsa_plugins.errors import CorsaError
from corsa_plugins.temporaries import temporary_beside

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "InUseError",
    "WriteError",
    "atomic_directory",
    "atomic_file",
    "atomic_write_bytes",
    "atomic_write_tensors",
    "atomic_write_text",
    "sha256_of_file",
    "sole_use",
]

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"


class InUseError(CorsaError, OSError):
    """A folder that somebody else is at work in."""


class WriteError(CorsaError, OSError):
    """A file that a library could not write; the message names it, and what the library said."""


def atomic_write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write ``text`` (UTF-8, newlines as they are) to ``path``, as :func:`atomic_file` does."""
    return atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_bytes(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write ``content`` to ``path``, as :func:`atomic_file` does.

    Returns:
        The path written to.
    """
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def atomic_write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> Path:
    """Write a safetensors file, as :func:`atomic_file` does.

    Args:
        path: Of the file.
        tensors: On any device, by name.
        metadata: Text, by name.

    Returns:
        The path written to.

    Raises:
        OSError: As for :func:`atomic_file`; what was there is still there.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_file(path, roomy=True) as temporary:  # safetensors writes another file beside it first
        ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            save_file(ready, temporary, metadata=dict(metadata))
        except SafetensorError as error:  # what the disk says comes wrapped
            raise WriteError(f"{path} cannot be written: {error}") from error
    return Path(path)


@contextmanager
def atomic_file(path: str | os.PathLike[str], *, roomy: bool = False) -> Iterator[Path]:
    """A new file to write, which becomes ``path``, completely or not at all.

    Within the block, it is written under a temporary name in the same folder; with ``roomy`` in a hidden folder there,
    for a library that makes files of its own beside it, which it leaves when it is killed. Afterwards it takes the
    place of ``path``. Whatever interrupts it, ``path`` holds the old content or the new one, and no temporary file is
    left; that of a process that was killed goes when ``path`` is next written. Missing parent folders are made; a
    symbolic link is followed; the mode of an existing file is kept.

    Raises:
        OSError: The folder cannot be written to, or ``path`` is a directory; the message names it.
    """
    path = Path(path)
    target = path.resolve()
    if target.is_dir():
        raise IsADirectoryError(f"{path} is a directory: name a file in it")
    target.parent.mkdir(parents=True, exist_ok=True)
    mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()
    with temporary_beside(target, folder=roomy) as hidden:
        temporary = hidden / target.name if roomy else hidden
        try:
            yield temporary
            _flush(temporary)
            os.chmod(temporary, mode)  # it was made private; a result file is not
            os.replace(temporary, target)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno is not None and error.filename is None:
                raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk does not say which file
            raise
        finally:
            if roomy:
                shutil.rmtree(hidden, ignore_errors=True)


@contextmanager
def atomic_directory(path: str | os.PathLike[str], last: Callable[[Path], object] | None = None) -> Iterator[Path]:
    """A new folder to fill, which becomes ``path``, completely or not at all.

    Within the block, files are written to a folder of the same name in a hidden one beside ``path``, which has room
    for other things too. Afterwards it takes the place of ``path``, and what was there before is deleted; if anything
    is raised, ``path`` is as it was and nothing is left behind. Where the process is killed, what is left behind goes
    when ``path`` is next written; where that happens between the two renamings that replace an existing folder, the
    old content is beside it under ``.NAME.*.old`` until then, and comes back.

    Args:
        path: The folder.
        last: Called with the folder once it is filled: what it writes is there when ``path`` is.

    Raises:
        NotADirectoryError: ``path`` is a file.
        OSError: The folder cannot be written to; for instance the disk is full.
    """
    path = Path(path)
    target = path.resolve()
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{path} is a file: name a folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with temporary_beside(target, folder=True) as hidden:
        try:
            temporary = hidden / target.name
            temporary.mkdir()
            yield temporary
            if last is not None:
                last(temporary)
            for file in temporary.rglob("*"):
                if file.is_file():
                    _flush(file)
            if target.exists():
                _replace_directory(temporary, target, hidden.with_suffix(".old"))
            else:
                os.rename(temporary, target)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)


def _replace_directory(new: Path, target: Path, old: Path) -> None:
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


def _flush(file: Path) -> None:
    """Wait until what was written is on the disk: a name that reaches it first would be that of an empty file."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


@contextmanager
def sole_use(folder: str | os.PathLike[str], *, wait: bool = False) -> Iterator[None]:
    """Within the block nobody else who asks for it has ``folder`` to themselves, in this process or another.

    The lock is a file ``.lock`` in the folder, which stays there; it holds for as long as the process lives, however
    that ends. Where a file system has no locks, nobody is kept out.

    Args:
        folder: Made, with its parents, if it is not there.
        wait: Until whoever has it is done.

    Raises:
        InUseError: Somebody has it, and this is not to wait.
    """
    import filelock  # takes a while, and few commands lock anything

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / LOCK_FILE, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise InUseError(f"{folder}: another run is at work there; wait for it, or choose another folder") from None
    except (OSError, NotImplementedError) as error:
        logger.info("%s cannot be locked: %s", folder, error)
    try:
        yield
    finally:
        lock.release()


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's content, 64 hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
