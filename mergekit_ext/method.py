"""The merge method: Eq. 6 of papers/model-merging-for-knowledge-editing.md, as mergekit wants it, tensor by tensor."""

from __future__ import annotations

import logging

import torch
from mergekit.merge_methods.base import BasePolicy, InputContract, OptionalTensorPolicy, PerNonBase, TensorGroup
from mergekit.merge_methods.easy_define import merge_method

from corsa_plugins.merging.deltas import EditedTensor, merge_deltas
from corsa_plugins.merging.memory import map_pages
from corsa_plugins.merging.ranges import Density, Weight
from corsa_plugins.merging.recipe import METHOD

__all__ = ["scaled_pruned_delta"]

logger = logging.getLogger(__name__)


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
    merged = merge_deltas(
        base.tensor, edited, per_row=per_row, prune_vectors=prune_vectors, name=name, base_label=str(base.id)
    )
    if merged is not base.tensor:
        logger.debug("changed: %s", name)
    return merged
