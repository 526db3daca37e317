"""An output directory that is there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
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
    path = Path(out).absolute()
    remove_abandoned(path.resolve())
    if path.exists() and not path.is_dir():
        raise OutputError(f"{out} is a file: name a folder for the output")
    if path.exists() and any(path.iterdir()):
        raise OutputError(f"{out} is not empty: name a new folder, or remove this one first")
    return path


@contextmanager
def disk_errors(out: str | os.PathLike[str], left: str = "nothing is left of it") -> Iterator[None]:
    """What writing to a full or broken disk raises, as an :class:`OutputError` that names ``out``; nothing else.

    Args:
        out: What is written.
        left: For the message: what there is now.
    """
    try:
        yield
    except CorsaError:
        raise
    except (OSError, SafetensorError) as error:
        if _is_of_something_else(error):
            raise
        raise OutputError(f"{out} cannot be written: {error}; {left}") from error
    except RuntimeError as error:
        if "inline_container" in str(error) or "PytorchStreamWriter" in str(error):  # how torch.save runs out of disk
            raise OutputError(f"{out} cannot be written: {error}; {left}") from error
        raise


@contextmanager
def new_directory(out: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty folder to fill, which becomes ``out``, completely or not at all.

    It has the name of ``out``, which mergekit writes into a model's card, and lies in a hidden folder on the same disk,
    which has room for other things too; see :func:`corsa_plugins.files.atomic_directory`.

    Raises:
        OutputError: ``out`` is a file or not empty, or the disk is full or broken.
    """
    final = check_output(out)
    with disk_errors(out), atomic_directory(final) as partial:
        yield partial


def _is_of_something_else(error: Exception) -> bool:
    """A file that could not be read or found, or a network that is not there."""
    if isinstance(error, OSError):
        return error.errno is None or isinstance(error, FileNotFoundError | ConnectionError | TimeoutError)
    return "deserializing" in str(error)
