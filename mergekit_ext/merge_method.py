"""The merge method: Eq. 6 of papers/model-merging-for-knowledge-editing.md, as mergekit wants it, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from mergekit.merge_methods.base import (
    BasePolicy,
    FunctionalGroupMergeMethod,
    InputContract,
    OptionalTensorPolicy,
    PerNonBase,
    TensorGroup,
)
from mergekit.merge_methods.easy_define import merge_method

from corsa_plugins.merging.comparison import same_bits
from corsa_plugins.merging.deltas import EditedTensor, merge_deltas
from corsa_plugins.merging.memory import map_pages
from corsa_plugins.merging.ranges import Density, Weight
from corsa_plugins.merging.recipe import METHOD

__all__ = ["DeltaMerge", "ToldTensors", "scaled_pruned_delta"]


@dataclass
class ToldTensors:
    """Names of tensors, in the order in which they were merged.

    Attributes:
        changed: Those that are not the base's own, bit for bit.
        lost: Those that are, though an edited model has another: its weight or density is 0 there, or what was added is
            too little for the dtype.
    """

    changed: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


class DeltaMerge(FunctionalGroupMergeMethod):
    """The merge method, which tells what it changed.

    mergekit calls the one method that it knows by name, in threads of its own, and hands nothing of it back: who wants
    to know has to ask the method itself.
    """

    def __init__(self, method: FunctionalGroupMergeMethod) -> None:
        super().__init__(method.spec, method.implementation)
        self._listening: list[ToldTensors] = []

    def merge_group(self, group: TensorGroup, /, **parameters: Any) -> torch.Tensor:
        """The merge of one tensor; the base's own, the very tensor, where nothing is added to it."""
        merged = super().merge_group(group, **parameters)
        if self._listening:
            base = group.base.tensor if group.base else None
            as_before = base is not None and (merged is base or same_bits(merged, base))
            lost = as_before and any(
                not same_bits(entry.tensor, merged)
                for entry in group.non_base
                # where all of a delta counts and the base itself comes back, the two have been compared already
                if merged is not base or not all(parameters[name][entry.id] for name in ("weight", "density"))
            )
            for told in self._listening:
                if not as_before:
                    told.changed.append(group.metadata.name or "the tensor")
                elif lost:
                    told.lost.append(group.metadata.name or "the tensor")
        return merged

    @contextmanager
    def told_tensors(self) -> Iterator[ToldTensors]:
        """What a merge within the block does to each tensor; whole when the block is left."""
        told = ToldTensors()
        self._listening.append(told)
        try:
            yield told
        finally:
            self._listening[:] = [others for others in self._listening if others is not told]


@DeltaMerge
@merge_method(
    name=METHOD,
    pretty_name="Scaled and pruned deltas",
    reference_url="https://github.com/Applied-Machine-Learning-Lab/MM4KE",
    contract=InputContract(base=BasePolicy.REQUIRED, min_non_base=1),
    # a weight that no edited model stores (a head tied to the embedding, say) is the base's
    optional_tensor_policy=OptionalTensorPolicy.PASSTHROUGH_BASE_SINGLETON,
)
def scaled_pruned_delta(
    group: TensorGroup,
    weight: PerNonBase[Weight] = 0.8,
    density: PerNonBase[Density] = 0.2,
    per_row: bool = False,
    prune_vectors: bool = True,
) -> torch.Tensor:
    """W = W_base + sum_i weight_i * Top_density_i(W_i - W_base).

    Works in float64 whatever the dtype of the inputs, in scratch memory that does not grow with the tensor
    (:mod:`corsa_plugins.merging.deltas`). A tensor that no edited model changed is the base's own, bit for bit.

    Args:
        group: The base's tensor and those of the edited models.
        weight: Per edited model, what its delta is scaled by; 1 - alpha of Eq. 5.
        density: Per edited model, the share of its delta to keep, the largest in magnitude.
        per_row: Keep the share of every row instead of the whole matrix.
        prune_vectors: ``False`` leaves the deltas of norms and biases whole.

    Raises:
        DeltaError: A tensor holds NaN or infinity; the message names it and its model.
    """
    base = group.base
    assert base is not None, "the contract requires a base"
    edited = [
        EditedTensor(entry.tensor, weight[entry.id], density[entry.id], str(entry.id)) for entry in group.non_base
    ]
    name = group.metadata.name or "the tensor"
    map_pages(group.tensors)
    return merge_deltas(
        base.tensor, edited, per_row=per_row, prune_vectors=prune_vectors, name=name, base_label=str(base.id)
    )
