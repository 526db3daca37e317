"""A merge in memory: a model whose changed tensors are those of a merge for as long as a block lasts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from corsa_plugins.bench.merge_sweep.points import SweepError
from corsa_plugins.merging.comparison import same_bits
from corsa_plugins.merging.deltas import EditedTensor, merge_deltas
from corsa_plugins.model.placement import bring_in, named_values

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["changed_tensors", "merged_into"]


def changed_tensors(base: PreTrainedModel, edited: PreTrainedModel) -> dict[str, tuple[Tensor, Tensor]]:
    """The parameters in which two models differ: by name, the base's values and a copy of the edited model's.

    Raises:
        SweepError: The models have different parameters or shapes, or do not differ.
    """
    before, after = dict(named_values(base)), dict(named_values(edited))
    if before.keys() != after.keys():
        name = min(before.keys() ^ after.keys())
        raise SweepError(f"only one of base and edited model has {name}: they are of different architectures")
    changed = {}
    for name, old in before.items():
        new = after[name]
        if old.shape != new.shape:
            raise SweepError(f"{name} has shape {tuple(new.shape)} in the edited model and {tuple(old.shape)} in base")
        moved = old.detach().to(new.device)
        if not same_bits(moved, new):
            changed[name] = (moved, new.detach().clone())
    if not changed:
        raise SweepError("base and edited model are the same in every tensor: there is no delta to scale or prune")
    return changed


@contextmanager
def merged_into(
    model: PreTrainedModel,
    changed: Mapping[str, tuple[Tensor, Tensor]],
    weight: float,
    density: float,
    *,
    per_row: bool = False,
    prune_vectors: bool = True,
) -> Iterator[None]:
    """``model`` with merged weights; after the block, with those of the edited model."""
    for name in changed:
        bring_in(model, name.rpartition(".")[0])
    parameters = dict(model.named_parameters())
    try:
        with torch.no_grad():
            for name, (old, new) in changed.items():
                item = EditedTensor(new, weight, density)
                merged = merge_deltas(old, [item], per_row=per_row, prune_vectors=prune_vectors, name=name)
                parameters[name].copy_(merged)
        yield
    finally:
        with torch.no_grad():
            for name, (_, new) in changed.items():
                parameters[name].copy_(new)
