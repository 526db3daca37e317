"""The base model below the adapters: asked with all of them switched off."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from corsa_plugins.model.architecture import accepts_logits_to_keep
from corsa_plugins.model.asking import eval_mode

__all__ = ["base_only", "kept_gradient_flags", "last_positions"]


@contextlib.contextmanager
def kept_gradient_flags(model: Any) -> Iterator[None]:
    """What requires gradients is as it was afterwards: PEFT changes it with the active adapter."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextlib.contextmanager
def base_only(model: Any) -> Iterator[None]:
    """The adapters switched off, if there are any; what requires gradients is as it was afterwards."""
    switched_off = model.disable_adapter() if hasattr(model, "peft_config") else contextlib.nullcontext()
    with kept_gradient_flags(model), switched_off:
        yield


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
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    keep = {"logits_to_keep": 1} if accepts_logits_to_keep(inner) else {}
    device = next(model.get_input_embeddings().parameters()).device
    by_length: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        by_length.setdefault(len(row), []).append(index)
    taken: dict[int, Tensor] = {}
    with base_only(model), eval_mode(model):
        for indices in by_length.values():
            for start in range(0, len(indices), batch_size):
                batch = indices[start : start + batch_size]
                ids = torch.tensor([rows[index] for index in batch], device=device)
                output = model(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    use_cache=False,
                    output_hidden_states=states,
                    **keep,
                )
                values = take(output)
                values = values.to("cpu", torch.promote_types(values.dtype, torch.float32))
                taken.update(zip(batch, values, strict=True))
    return [taken[index] for index in range(len(rows))]
