"""From rows of token ids to what a forward pass takes: rectangles with masks, batches of similar length, the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from corsa_plugins.errors import SettingError
from corsa_plugins.model.placement import execution_device

__all__ = ["Padded", "base_model", "batches_by_length", "input_device", "map_by_length", "pad"]

_Row = TypeVar("_Row")
_Result = TypeVar("_Result")


class Padded(NamedTuple):
    """Rows of ids as a rectangle.

    Attributes:
        ids: (rows, longest), int64.
        mask: Likewise, the attention mask: 1 at the ids, 0 at the padding.
    """

    ids: Tensor
    mask: Tensor


def pad(rows: Sequence[Sequence[int]], value: int = 0, *, side: Literal["left", "right"] = "right") -> Padded:
    """Fill up ``rows`` with ``value`` to the length of the longest.

    Args:
        rows: At least one; none is changed.
        value: Behind a causal model's tokens it makes no difference, for the mask hides it; of labels, -100.
        side: On the right, every position stays what it is, and no causal model, with a recurrent state or without,
            can see the padding. On the left, the last position is the last of every row, as generation needs it.
    """
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), value, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        span = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[index, span] = torch.tensor(row, dtype=torch.long)
        mask[index, span] = 1
    return Padded(ids, mask)


def batches_by_length(lengths: Sequence[int], batch_size: int, *, one_length: bool = False) -> Iterator[list[int]]:
    """The indices of rows in batches of similar length, the longest first: less padding, and too little memory shows at
    once.

    Args:
        lengths: Of each row.
        batch_size: Most rows of a batch.
        one_length: Have rows of the same length only in a batch, so that none is padded.

    Raises:
        SettingError: ``batch_size`` is not an integer of at least 1.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise SettingError(f"batch_size is {batch_size!r}: it must be an integer of at least 1")
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return _batches(order, lengths, batch_size, one_length)


def _batches(order: Sequence[int], lengths: Sequence[int], batch_size: int, one_length: bool) -> Iterator[list[int]]:
    start = 0
    while start < len(order):
        batch = list(order[start : start + batch_size])
        if one_length:
            batch = [index for index in batch if lengths[index] == lengths[batch[0]]]
        start += len(batch)
        yield batch


def map_by_length(
    function: Callable[[list[_Row]], Sequence[_Result]],
    rows: Sequence[_Row],
    lengths: Sequence[int],
    batch_size: int,
    *,
    one_length: bool = False,
    description: str | None = None,
) -> list[_Result]:
    """``function`` over batches of rows of similar length; its results in the order of ``rows``.

    Args:
        function: Gives one result for each row of a batch.
        rows: Any number.
        lengths: Of each row.
        batch_size: As for :func:`batches_by_length`.
        one_length: Likewise.
        description: Of a progress bar; ``None`` shows none.

    Raises:
        SettingError: ``batch_size`` is not an integer of at least 1.
    """
    results: dict[int, _Result] = {}
    batches = batches_by_length(lengths, batch_size, one_length=one_length)
    # disable=None: no bar where nobody watches, as in a log file
    with tqdm(total=len(rows), desc=description, disable=True if description is None else None, leave=False) as bar:
        for batch in batches:
            results.update(zip(batch, function([rows[index] for index in batch]), strict=True))
            bar.update(len(batch))
    return [results[index] for index in range(len(rows))]


def base_model(model: Any) -> Any:
    """The transformers model inside a ``PeftModel``, adapter layers and all; any other model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def input_device(model: Any) -> torch.device:
    """Where inputs go: with a device map, the device of the embedding."""
    return execution_device(model.get_input_embeddings())
