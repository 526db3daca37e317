"""An output directory that is there whole or not at all."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from corsa_plugins.errors import CorsaError
from corsa_plugins.files import atomic_directory
from corsa_plugins.temporaries import remove_abandoned

__all__ = ["OutputError", "check_output", "disk_errors", "new_directory"]


class OutputError(CorsaError, OSError):
    """An output directory that cannot be used or written."""


def check_output(out: str | os.PathLike[str]) -> Path:
    """The path of a directory to be made; what killed processes have left beside it goes.

    Raises:
        OutputError: It is a file, or a directory with something in it.
    """
    if not os.fspath(out):  # which would be the current folder
        raise OutputError("the output has no name: name a new folder")
    path = Path(out).absolute()
    remove_abandoned(path.resolve())
    if path.exists() and not path.is_dir():
        raise OutputError(f"{out} is a file: name a folder for the output")
    if path.exists() and any(path.iterdir()):
        raise OutputError(f"{out} is not empty: name a new folder, or remove this one first")
    return path


@contextmanager
def disk_errors(out: str | os.PathLike[str], left: str = "nothing is left of it") -> Iterator[None]:
    """What writing ``out`` to a full or broken disk raises, as an :class:`OutputError` that names it; nothing else.

    An error that names a file is of ``out`` where that file is in it, in what is written beside it, or above it. One
    that names none is, where a disk says it.

    Args:
        out: What is written.
        left: For the message: what there is now.
    """
    try:
        yield
    except CorsaError:
        raise
    except (OSError, SafetensorError) as error:
        if _is_of_something_else(error, Path(out)):
            raise
        raise OutputError(f"{out} cannot be written: {error}; {left}") from error
    except RuntimeError as error:
        if "inline_container" in str(error) or "PytorchStreamWriter" in str(error):  # how torch.save runs out of disk
            raise OutputError(f"{out} cannot be written: {error}; {left}") from error
        raise
    except Exception as error:
        if type(error) is Exception and _number(error) in _OF_DISKS:  # the tokenizers library has no error of its own
            raise OutputError(f"{out} cannot be written: {error}; {left}") from error
        raise


@contextmanager
def new_directory(out: str | os.PathLike[str], last: Callable[[Path], object] | None = None) -> Iterator[Path]:
    """An empty folder to fill, which becomes ``out``, completely or not at all.

    It has the name of ``out``, which mergekit writes into a model's card, and lies in a hidden folder on the same disk,
    which has room for other things too; see :func:`corsa_plugins.files.atomic_directory`.

    Raises:
        OutputError: ``out`` is a file or not empty, or the disk is full or broken.
    """
    final = check_output(out)
    with disk_errors(out), atomic_directory(final, last) as partial:
        yield partial


_OF_DISKS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE})


def _number(error: Exception) -> int | None:
    """That of the system, in the message of a library that is written in Rust."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found.group(1)) if found else None


def _is_of_something_else(error: Exception, out: Path) -> bool:
    """A file elsewhere, one that could not be read or found, or a network that is not there."""
    if not isinstance(error, OSError):
        return "deserializing" in str(error)
    if error.errno is None or isinstance(error, FileNotFoundError | ConnectionError | TimeoutError):
        return True
    named = [Path(os.fsdecode(name)) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    return not any(_concerns(name, out) for name in named) if named else error.errno not in _OF_DISKS


def _concerns(file: Path, out: Path) -> bool:
    """Whether a file is in a folder, in a hidden one that is to become it, or one of its parents."""
    file, out = file.absolute(), out.absolute()
    for target in (out, out.resolve()):
        if file.is_relative_to(target) or target.is_relative_to(file):
            return True
        inside = file.relative_to(target.parent).parts if file.is_relative_to(target.parent) else ()
        if inside and inside[0].startswith(f".{target.name}."):
            return True
    return False
