"""What an evaluation has answered so far, on disk: a stopped one goes on where it was, and only where it is the same.

The file is JSON Lines. The first line is the key of the evaluation; each further line is a list of finished records,
written in one piece when a chunk of requests is done. A line that was cut off is dropped, and its requests are asked
again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import Tensor

from corsa_plugins.errors import CorsaError

if TYPE_CHECKING:
    from pydantic import BaseModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Checkpoint", "CheckpointError", "input_key", "model_key"]

logger = logging.getLogger(__name__)


class CheckpointError(CorsaError, ValueError):
    """A checkpoint that belongs to another evaluation, or is none."""


class Checkpoint:
    """The file, open for appending; a context manager.

    Args:
        path: Made, with its folder, if it is not there.
        key: What the answers depend on, JSON values.

    Attributes:
        rows: The records found in it, in order.

    Raises:
        CheckpointError: The file has another key, or is not a checkpoint.
        OSError: It cannot be read or written.
    """

    def __init__(self, path: str | os.PathLike[str], key: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.rows: list[Any] = []
        self._head = _line({"evaluation": dict(key)})
        whole = self._read(dict(key))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = self.path.open("r+b" if whole else "wb")
        self._file.truncate(whole)
        self._file.seek(whole)
        if not whole:
            self._write(self._head)
        if self.rows:
            logger.info("%s: %d answered already", self.path, len(self.rows))

    def _read(self, key: dict[str, Any]) -> int:
        """Fill ``rows``; the length in bytes of the whole lines."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return 0
        head, newline, _ = content.partition(b"\n")
        if not newline and self._head.startswith(content):
            return 0  # stopped while the first line was written, or empty
        try:
            found = json.loads(head)["evaluation"]
            differing = [name for name in {**found, **key} if found.get(name) != key.get(name)]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CheckpointError(f"{self.path} is not an unfinished evaluation: move it away") from None
        if differing:
            raise CheckpointError(
                f"{self.path} is an unfinished evaluation of something else (other {', '.join(sorted(differing))}): "
                "finish it as it was begun, or delete it, or write the results elsewhere"
            )
        end = len(head) + 1
        while (newline_at := content.find(b"\n", end)) >= 0:
            try:
                self.rows += json.loads(content[end:newline_at])
            except (ValueError, TypeError):
                break
            end = newline_at + 1
        if end < len(content):
            logger.warning("%s: an incomplete line is dropped, and what it held is asked again", self.path)
        return end

    def append(self, rows: Sequence[Any]) -> None:
        """Add finished records; they are on disk when this returns."""
        self._write(_line(list(rows)))

    def _write(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def input_key(items: Sequence[BaseModel]) -> dict[str, str]:
    """Identifies what is asked: a hash of the requests and facts, in order."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(_line([type(item).__name__, item.model_dump(mode="json")]))
    return {"requests": digest.hexdigest()[:16]}


def model_key(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Identifies what is being asked: hashes of all weights, of which adapters are active, and of the vocabulary.

    Each tensor enters by its name, shape, type and two sums, rounded so that the order of summation does not show. Two
    models that differ in less than a billionth of one tensor's sum are taken for the same.
    """
    weights = hashlib.sha256()
    with torch.no_grad():
        for name, tensor in sorted({**dict(model.named_parameters()), **dict(model.named_buffers())}.items()):
            weights.update(_line([name, list(tensor.shape), str(tensor.dtype), *_sums(tensor)]))
    for name, module in model.named_modules():
        switches = [str(getattr(module, switch, None)) for switch in ("disable_adapters", "active_adapters")]
        if switches != ["None", "None"]:
            weights.update(_line([name, *switches]))
    words = hashlib.sha256(_line([len(tokenizer), sorted(tokenizer.get_vocab().items()), tokenizer.chat_template]))
    return {"model": weights.hexdigest()[:16], "tokenizer": words.hexdigest()[:16]}


def _sums(tensor: Tensor) -> list[str]:
    if tensor.is_meta or not tensor.numel():
        return []
    values = tensor.detach()
    if not values.dtype.is_floating_point or values.element_size() == 1:  # packed formats have no sums of their own
        values = values.to(torch.float32)
    size = float(torch.linalg.vector_norm(values, ord=1, dtype=torch.float64))
    total = float(values.sum(dtype=torch.float64))
    share = total / size if size and math.isfinite(size) else 0.0
    return [f"{size:.9e}", f"{share:.9f}"]


def _line(value: Any) -> bytes:
    # ASCII: a lone surrogate in an answer can be written, and read back
    return (json.dumps(value) + "\n").encode("ascii")
