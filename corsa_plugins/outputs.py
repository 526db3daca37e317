"""An output directory that is there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from corsa_plugins.errors import CorsaError

__all__ = ["OutputError", "check_output", "disk_errors", "new_directory"]


class OutputError(CorsaError, OSError):
    """An output directory that cannot be used or written."""


def check_output(out: str | os.PathLike[str]) -> Path:
    """The path of a directory to be made.

    Raises:
        OutputError: It is a file, or a directory with something in it.
    """
    path = Path(out).absolute()
    if path.exists() and not path.is_dir():
        raise OutputError(f"{out} is a file: name a folder for the output")
    if path.exists() and any(path.iterdir()):
        raise OutputError(f"{out} is not empty: name a new folder, or remove this one first")
    return path


@contextmanager
def disk_errors(out: str | os.PathLike[str]) -> Iterator[None]:
    """What writing to a full or broken disk raises, as an :class:`OutputError` that names ``out``."""
    try:
        yield
    except CorsaError:
        raise
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{out} cannot be written: {error}; nothing is left of it") from error
    except RuntimeError as error:
        if "inline_container" in str(error) or "PytorchStreamWriter" in str(error):  # how torch.save runs out of disk
            raise OutputError(f"{out} cannot be written: {error}; nothing is left of it") from error
        raise


@contextmanager
def new_directory(out: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to make a directory at, which becomes ``out`` when the block ends.

    The path lies in a hidden folder beside ``out``, on the same disk, and ends in the name of ``out``, which mergekit
    writes into the model's card. Whatever is raised in the block, that folder is
    removed and ``out`` is what it was; files are flushed to the disk before they get their final name.

    Raises:
        OutputError: ``out`` is a file or not empty, or a file could not be written.
    """
    final = check_output(out)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}.", suffix=".part"))
    except OSError as error:
        raise OutputError(f"{out} cannot be made: {error}") from error
    partial = work / final.name
    try:
        yield partial
        with disk_errors(out):
            for file in sorted(path for path in partial.rglob("*") if path.is_file()):
                with open(file, "rb") as stream:
                    os.fsync(stream.fileno())
            if final.is_dir() and not final.is_symlink():
                final.rmdir()
            os.replace(partial, final)
    finally:
        shutil.rmtree(work, ignore_errors=True)
