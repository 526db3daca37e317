"""The base model below the adapters: asked with all of them switched off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from corsa_plugins.model.architecture import accepts_logits_to_keep
from corsa_plugins.model.batching import base_model, input_device, map_by_length
from corsa_plugins.model.borrowing import adapters_off, eval_mode

__all__ = ["last_positions"]


def last_positions(
    model: Any, rows: Sequence[list[int]], batch_size: int, take: Callable[[Any], Tensor], states: bool = False
) -> list[Tensor]:
    """What the base model's outputs hold for the last position of each row; on the CPU, float32 or wider.

    A batch is of rows of one length: nothing is padded, so the last position is the same in all of them.

    Args:
        model: The base model, or a ``PeftModel``.
        rows: Token numbers.
        batch_size: Rows per forward pass.
        take: Gives what is wanted of a batch's outputs, one row for each of its rows.
        states: Whether ``take`` needs the hidden states.
    """
    keep = {"logits_to_keep": 1} if accepts_logits_to_keep(base_model(model)) else {}
    device = input_device(model)

    def last(batch: list[list[int]]) -> list[Tensor]:
        ids = torch.tensor(batch, device=device)
        output = model(
            input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, output_hidden_states=states, **keep
        )
        values = take(output)
        return list(values.to("cpu", torch.promote_types(values.dtype, torch.float32)))

    with adapters_off(model), eval_mode(model):
        return map_by_length(last, rows, [len(row) for row in rows], batch_size, one_length=True)
