"""What an evaluation has answered so far, on disk: a stopped one goes on where it was, and only where it is the same.

The file is a journal (:mod:`corsa_plugins.journal`). Its head is the key of the evaluation; each item is a list of
finished records, written in one piece when a chunk of requests is done.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from corsa_plugins.data.requests import input_key
from corsa_plugins.errors import CorsaError
from corsa_plugins.journal import Journal, JournalError, OtherWorkError

__all__ = ["CheckpointError", "finished_records", "input_key", "open_checkpoint"]

logger = logging.getLogger(__name__)

_HEAD = "evaluation"


class CheckpointError(CorsaError, ValueError):
    """A checkpoint that belongs to another evaluation, or is none."""


def open_checkpoint(path: str | os.PathLike[str], key: Mapping[str, Any]) -> Journal:
    """The journal of an evaluation, to be used as a context.

    Args:
        path: Made, with its folder, if it is not there.
        key: What the answers depend on, JSON values.

    Raises:
        CheckpointError: The file has another key, or is not a checkpoint.
        OSError: It cannot be read or written.
    """
    try:
        journal = Journal(path, {_HEAD: dict(key)})
    except OtherWorkError as error:
        if _HEAD in error.differing:
            raise CheckpointError(f"{path} is not an unfinished evaluation: move it away") from None
        raise CheckpointError(
            f"{path} is an unfinished evaluation of something else (other {', '.join(error.differing)}): "
            "finish it as it was begun, or delete it, or write the results elsewhere"
        ) from None
    except JournalError as error:
        raise CheckpointError(f"{path} is not an unfinished evaluation ({error}): move it away") from None
    if not all(isinstance(chunk, list) for chunk in journal.items):
        journal.close()
        raise CheckpointError(f"{path} is not an unfinished evaluation: move it away")
    if journal.items:
        logger.info("%s: %d answered already", path, len(finished_records(journal)))
    return journal


def finished_records(journal: Journal) -> list[Any]:
    """The records in a checkpoint, in order, as plain data."""
    return [record for chunk in journal.items for record in chunk]
