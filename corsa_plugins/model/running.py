"""Running part of a model by its own forward: blocks whose output is known are skipped, the head runs where needed.

The model's forward still runs around the blocks, so masks, rotary angles, soft caps and scales are its own affair, for
every family. Whatever is put on the model for it comes off again, also after an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from corsa_plugins.model.architecture import accepts_logits_to_keep
from corsa_plugins.model.batching import base_model, input_device, pad
from corsa_plugins.model.borrowing import frozen, hooked, replaced

if TYPE_CHECKING:
    from corsa_plugins.model.architecture import Architecture
    from corsa_plugins.model.tokenization import JoinedIds

_PASS = 32
"""What a pass more costs on a processor, in tokens: it reads all weights once more. 135 M parameters in float32 take it
as long as about 20."""

__all__ = [
    "adds_output_as_it_is",
    "contiguous_into_head",
    "hidden_states",
    "logits_at",
    "stopped_after",
    "target_logits",
    "with_hidden_states",
]


@contextmanager
def stopped_after(architecture: Architecture, layer: int) -> Iterator[None]:
    """Within the block, what block ``layer`` puts out passes by the blocks above it."""
    blocks = [block.module for block in architecture.blocks]
    latest: list[Any] = [None]

    def note(_: nn.Module, args: Any, output: Any) -> None:
        latest[0] = output

    with hooked(blocks[layer], note), replaced(blocks[layer + 1 :], lambda *args, **kwargs: latest[0]):
        yield


def hidden_states(output: Any) -> Tensor:
    """Those that a block put out, alone or with other things behind them."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def with_hidden_states(output: Any, hidden: Tensor) -> Any:
    """A block's output with other hidden states; attention weights, which nobody asked for, are not kept."""
    return (hidden, *(None for _ in output[1:])) if isinstance(output, tuple) else hidden


def logits_at(
    architecture: Architecture, ids: Tensor, mask: Tensor, rows: Tensor, positions: Tensor, **inputs: Any
) -> Tensor:
    """The model's logits (n, vocabulary) at ``n`` positions, in float32 or the model's precision where it is higher.

    Args:
        architecture: Of the model to run.
        ids: (rows, length).
        mask: (rows, length).
        rows: (n,), the row of each position.
        positions: (n,), in its row.
        inputs: What else to give the model, or something in place of the mask.
    """
    model: Any = architecture.model
    # What comes behind the head (soft caps, scales) works on each logit, whatever their arrangement.
    device = input_device(model)
    given = {"attention_mask": mask.to(device), "use_cache": False} | inputs
    with _only_into_head(architecture.head.module, (*ids.shape,), rows, positions) as chosen:
        logits = model(input_ids=ids.to(device), **given).logits
    logits = logits[0] if chosen else logits[rows.to(logits.device), positions.to(logits.device)]
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@contextmanager
def _only_into_head(
    head: nn.Module | None, shape: tuple[int, int], rows: Tensor, positions: Tensor
) -> Iterator[list[bool]]:
    """Within the block the head is given ``n`` positions, as one row, of hidden states that have this shape.

    The list is not empty once it has been: a model may have no such module, or not call it.
    """
    chosen: list[bool] = []

    def choose(_: nn.Module, args: tuple[Any, ...]) -> Any:
        if not args or not isinstance(args[0], Tensor) or args[0].shape[:2] != shape:
            return None
        chosen.append(True)
        hidden = args[0]
        return (hidden[rows.to(hidden.device), positions.to(hidden.device)][None], *args[1:])

    with nullcontext() if head is None else hooked(head, choose, before=True):
        yield chosen


@contextmanager
def contiguous_into_head(model: Any) -> Iterator[None]:
    """Within the block the vocabulary head is given its hidden states in one piece.

    A model that keeps the last few positions gives it a slice of them. Of a frozen model torch multiplies such a slice
    row by row, with a copy of the head's whole weight for every row, which can take twenty times as long as the rest.
    """

    def gather(_: nn.Module, args: tuple[Any, ...]) -> Any:
        if args and isinstance(args[0], Tensor) and not args[0].is_contiguous():
            return (args[0].contiguous(), *args[1:])
        return None

    head = base_model(model).get_output_embeddings()
    with nullcontext() if head is None else hooked(head, gather, before=True):
        yield


def target_logits(model: Any, rows: Sequence[JoinedIds]) -> list[Tensor]:
    """For each row the logits (tokens of its target, vocabulary) that predict its target, in float32 or wider.

    The vocabulary head runs where a target's token is predicted; where a model does not call it as a module, from the
    first such position on, if the model can be told so. A target's last token predicts nothing and is not run. On a
    processor, rows of two lengths run apart where that saves more padding than a pass costs; not where weights are
    fetched for every pass.

    Args:
        model: A causal language model; a ``PeftModel`` answers with its active adapter.
        rows: One batch, padded here.
    """
    lengths = [len(row.prompt_ids) + max(len(row.target_ids) - 1, 0) for row in rows]
    found: dict[int, Tensor] = {}
    alone = input_device(model).type == "cpu" and not getattr(base_model(model), "hf_device_map", None)
    for part in _apart(lengths, _PASS if alone else None):
        found.update(zip(part, _target_logits(model, [rows[index] for index in part]), strict=True))
    return [found[index] for index in range(len(rows))]


def _apart(lengths: Sequence[int], cost: int | None) -> list[list[int]]:
    """The indices of rows as one part, or as the two, shorter and longer rows, with the least padding between them.

    Args:
        lengths: Of each row.
        cost: Tokens of padding that a pass of its own has to save; ``None``: there is to be one part.
    """
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    saved = [(lengths[order[-1]] - lengths[order[n - 1]]) * n for n in range(1, len(order))]
    if cost is None or max(saved, default=0) <= cost:
        return [list(range(len(lengths)))]
    shorter = saved.index(max(saved)) + 1
    return [sorted(order[:shorter]), sorted(order[shorter:])]


def _target_logits(model: Any, rows: Sequence[JoinedIds]) -> list[Tensor]:
    ids, mask = pad([row.prompt_ids + row.target_ids[:-1] for row in rows])
    device = input_device(model)
    first, keep = 0, {}
    if accepts_logits_to_keep(base_model(model)):
        first = min(len(row.prompt_ids) for row in rows) - 1
        keep = {"logits_to_keep": ids.shape[1] - first}
    sizes = [len(row.target_ids) for row in rows]
    of_row = torch.tensor([index for index, size in enumerate(sizes) for _ in range(size)], dtype=torch.long)
    starts = (len(row.prompt_ids) - 1 - first for row in rows)
    at = torch.tensor(
        [start + i for start, size in zip(starts, sizes, strict=True) for i in range(size)], dtype=torch.long
    )
    head = base_model(model).get_output_embeddings()
    with _only_into_head(head, (len(rows), ids.shape[1] - first), of_row, at) as chosen, contiguous_into_head(model):
        logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False, **keep).logits
    logits = logits[0] if chosen else logits[of_row.to(logits.device), at.to(logits.device)]
    return list(logits.to(torch.promote_types(logits.dtype, torch.float32)).split(sizes))


@torch.no_grad()
def adds_output_as_it_is(architecture: Architecture, layer: int) -> bool:
    """Whether what the map that edits change puts out reaches the block's output unchanged, as a term of a sum.

    Some families put a norm behind it, or scale it. It is tried: something is added there, and looked for in what the
    block puts out.
    """
    model: Any = architecture.model
    down, block = architecture.edited(layer).module, architecture.block(layer).module
    device = input_device(model)
    embedding: Any = architecture.embedding.module
    ids = torch.arange(1, 4, device=device)[None] % embedding.weight.shape[0]
    outputs: list[Tensor] = []
    added: list[Tensor] = []

    def add(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        other = output.flip(-1) + output.abs().mean()
        # As long as what the block puts out: half precision rounds a term away that is small beside the others.
        lengths = outputs[0].norm(dim=-1, keepdim=True).reshape(*output.shape[:-1], 1).to(output)
        added.append(lengths * (other / other.norm(dim=-1, keepdim=True)))
        return output + added[-1]

    def listen(_: nn.Module, args: Any, output: Any) -> None:
        outputs.append(hidden_states(output).double())

    with hooked(block, listen), frozen(model), stopped_after(architecture, layer):
        model(input_ids=ids, use_cache=False)
        if outputs[0].shape[:-1].numel() != ids.numel():  # Gemma 3n's residual stream is several
            return False
        with hooked(down, add):
            model(input_ids=ids, use_cache=False)
    arrived, sent = outputs[1] - outputs[0], added[0].double().reshape(outputs[0].shape)
    # Half precision rounds the sum to under a per cent; a norm or a scale changes the term altogether.
    return float((arrived - sent).norm()) <= 0.1 * float(sent.norm())
