"""How many requests are optimised side by side: as many as a limit on memory holds, measured on the longest of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from corsa_plugins.alphaedit.lookup.rows import Row
from corsa_plugins.alphaedit.values.loss import BatchLoss, Reuse
from corsa_plugins.alphaedit.values.reuse import few_of
from corsa_plugins.alphaedit.values.settings import ValueSettings
from corsa_plugins.model.architecture import Architecture
from corsa_plugins.model.placement import execution_device
from corsa_plugins.model.quantised import parts_of

__all__ = ["held_bytes", "side_by_side"]

LEAST = 128 * 2**20
"""Bytes that are taken without a second thought: small models would else edit one request after the other."""


# Six parameters that a loss takes; the requests come in the order of their batches.
def side_by_side(
    architecture: Architecture,
    layer: int,
    requests: Sequence[Sequence[Row]],
    settings: ValueSettings,
    reuse: Reuse,
    site: nn.Module | None = None,
) -> int:
    """The requests of a batch, by ``settings.batch_size`` or what ``settings.memory`` holds.

    Args:
        requests: The longest first; a few of its texts are run as they will be, and as a whole.
    """
    if settings.batch_size is not None or len(requests) == 1:
        return settings.batch_size or 1
    few = few_of(requests[0])

    def held(reuse: Reuse) -> int:
        """Of all texts of the longest request."""
        loss = BatchLoss(architecture, layer, [few], settings, reuse, site)
        left_out = len(requests[0]) - len(few)
        return held_bytes(loss) * (len(loss.texts.rows) + left_out) // len(loss.texts.rows)

    own = held(reuse)
    gpus = [device for device in _devices(architecture, layer) if device.type == "cuda"]
    if settings.memory is not None:
        limit = int(settings.memory * 2**30)
    elif gpus:
        limit = min(map(_free_bytes, gpus)) // 2  # as if the fullest held all of it
    else:
        limit = LEAST
        if own * len(requests) > limit:
            limit = max(limit, held("nothing"))
    return min(max(1, limit // own), len(requests))


def _devices(architecture: Architecture, layer: int) -> set[torch.device]:
    """Where the blocks from ``layer`` on are run; what is offloaded has no device of its own."""
    parts = [part for block in architecture.blocks[layer:] for part in block.module.modules()]
    return {execution_device(part) for part in parts if next(part.parameters(recurse=False), None) is not None}


def _free_bytes(gpu: torch.device) -> int:
    return torch.cuda.mem_get_info(gpu)[0] + torch.cuda.memory_reserved(gpu) - torch.cuda.memory_allocated(gpu)


def held_bytes(loss: BatchLoss) -> int:
    """Bytes that a call of ``loss`` holds until its gradient is taken, and of what stays between calls."""
    weights = {_storage(part) for parameter in loss.architecture.model.parameters() for part in parts_of(parameter)}
    held: dict[tuple[torch.device, int], int] = {}

    def note(tensor: Tensor) -> Tensor:
        for part in parts_of(tensor):
            if (storage := _storage(part)) not in weights:
                held[storage] = part.untyped_storage().nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        losses = loss(torch.zeros_like(loss.initial).requires_grad_())
    del losses
    return loss.kept_bytes + sum(held.values())


def _storage(tensor: Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()
