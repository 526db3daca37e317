"""Scale and prune weight deltas: the merging stage of papers/model-merging-for-knowledge-editing.md.

    W = W_base + sum_i weight_i * Top_density_i(W_i - W_base)        (Eq. 6; Eq. 5 with density 1)

:func:`merge_deltas` serves R-SFT's second stage and the mergekit method alike.

Precision: deltas are formed, compared and added in float64 whatever the storage dtype, and the sum is rounded once, to
the dtype of the base. Storage dtypes are too coarse for it: in bfloat16 two different deltas often round to one, and
which of them is among the largest would be decided by the rounding.

Scratch memory: under 64 MiB on a CPU and 512 MiB on a GPU beside the inputs and the result, however large the tensor
(:mod:`corsa_plugins.merging.memory`, :mod:`corsa_plugins.merging.selection`). One that is not contiguous is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from corsa_plugins.errors import CorsaError
from corsa_plugins.merging.comparison import same_bits
from corsa_plugins.merging.memory import DeltaChunks
from corsa_plugins.merging.ranges import check_density, check_weight
from corsa_plugins.merging.selection import select

__all__ = ["DeltaError", "EditedTensor", "merge_deltas", "prune_delta"]


class DeltaError(CorsaError, ValueError):
    """Tensors that have no delta: of different shapes, not of floating point, or holding NaN or infinity."""


@dataclass(frozen=True)
class EditedTensor:
    """One edited model's tensor and how much of its delta to keep.

    Attributes:
        tensor: The edited weights, of the base's shape and device and of any floating dtype.
        weight: What the delta is scaled by: ``1 - alpha`` of Eq. 5.
        density: Share of the delta's elements to keep, the largest in magnitude: ``p`` of Eq. 6.
        label: What errors call the model it comes from.
    """

    tensor: Tensor
    weight: float = 0.8
    density: float = 0.2
    label: str = "the edited model"


@torch.no_grad()
def merge_deltas(
    base: Tensor,
    edited: Sequence[EditedTensor],
    *,
    per_row: bool = False,
    prune_vectors: bool = True,
    name: str = "the tensor",
    base_label: str = "the base model",
) -> Tensor:
    """The base plus every edited tensor's delta, scaled and pruned (Eq. 6).

    Of equal magnitudes at the edge, those with the lowest index (in row-major order) are kept, so the result does not
    depend on the device. An element that no kept delta changes keeps its value. One edited tensor alone with weight 1
    gives exactly its own values where they are kept: ``b + (x - b)`` would lose an ``x`` that is tiny beside ``b``.

    Args:
        base: Of any shape and floating dtype.
        edited: Any number of edited tensors of the same shape.
        per_row: Keep the share of every row (the last dimension) instead of the whole tensor.
        prune_vectors: ``False`` keeps the whole delta of tensors of fewer than two dimensions (norms, biases), whatever
            the density.
        name: What errors call the tensor.
        base_label: What errors call the model that ``base`` comes from.

    Returns:
        A new tensor of the base's shape, dtype and device; ``base`` itself where nothing is added to it: no edited
        tensor differs from it, or all weights or densities are 0.

    Raises:
        DeltaError: Shapes or devices differ, a tensor is not of floating point, one that enters the result holds NaN
            or infinity, or the result would. The message names tensor and model.
        SettingError: A weight is not finite or a density is outside [0, 1].
    """
    entering = []
    unpruned = not prune_vectors and base.dim() < 2
    for item in edited:
        _check_pair(base, item, name, base_label)
        check_weight(item.weight)
        density = 1.0 if unpruned else check_density(item.density)
        if item.weight and density and not same_bits(item.tensor, base):
            entering.append((item, density))
    if not entering or not base.numel():
        return base

    flat_base = base.detach().reshape(-1)
    row = base.shape[-1] if per_row and base.dim() else None
    terms = []
    for item, density in entering:
        chunks = DeltaChunks(item.tensor.detach().reshape(-1), flat_base, row)
        terms.append((item, chunks, select(chunks, density, row)))
    for item, chunks, selection in terms:
        if not selection.finite:
            raise _not_finite(chunks, name, item.label, base_label)

    result = torch.empty_like(flat_base)
    first, of_first, kept_of_first = terms[0]
    alone = len(terms) == 1 and first.weight == 1
    buffer = of_first.buffer()
    for part in of_first.parts():
        before = flat_base[part]
        if alone:
            kept = kept_of_first.prune(of_first.delta(part)) != 0
            result[part] = torch.where(kept, of_first.edited[part].to(base.dtype), before)
        else:
            total = buffer[: len(before)].copy_(before)
            for item, chunks, selection in terms:
                # not add_(..., alpha=weight): some devices fuse it, and half-way cases would then round differently
                total.add_(selection.prune(chunks.delta(part)).mul_(item.weight))
            result[part] = total
        if not result[part].isfinite().all():
            weights = ", ".join(f"{item.weight:g} for {item.label}" for item, _, _ in terms)
            raise DeltaError(
                f"{name}: the merge overflows {str(base.dtype).removeprefix('torch.')} with the weight {weights}; "
                "lower it, or merge in a wider dtype"
            )
    return result.view(base.shape)


@torch.no_grad()
def prune_delta(delta: Tensor, density: float, *, per_row: bool = False) -> Tensor:
    """Top_p of Eq. 6: ``delta`` with all but the largest magnitudes set to zero.

    Args:
        delta: Of any shape and floating dtype.
        density: Share to keep; see :func:`~corsa_plugins.merging.selection.kept_count`.
        per_row: Keep the share of every row (the last dimension) instead of the whole tensor.

    Returns:
        A new tensor of the same shape and dtype.

    Raises:
        DeltaError: ``delta`` is not of floating point, or holds NaN or infinity.
        SettingError: ``density`` is outside [0, 1].
    """
    zero = torch.zeros_like(delta)
    item = EditedTensor(delta, weight=1.0, density=density, label="the delta")
    return merge_deltas(zero, [item], per_row=per_row, base_label="zero")


def _check_pair(base: Tensor, item: EditedTensor, name: str, base_label: str) -> None:
    for tensor, label in ((base, base_label), (item.tensor, item.label)):
        if not tensor.is_floating_point():
            raise DeltaError(f"{name} of {label} is of {tensor.dtype}: only floating-point tensors have a delta")
    if item.tensor.shape != base.shape:
        raise DeltaError(
            f"{name} has shape {tuple(item.tensor.shape)} in {item.label} and {tuple(base.shape)} in {base_label}: "
            "only models of one architecture and vocabulary can be merged"
        )
    if item.tensor.device != base.device:
        raise DeltaError(f"{name} is on {item.tensor.device} in {item.label} and on {base.device} in {base_label}")
    if base.device.type == "mps":
        raise DeltaError(f"{name} is on {base.device}, which has no float64: merge on the CPU")


def _not_finite(chunks: DeltaChunks, name: str, label: str, base_label: str) -> DeltaError:
    for tensor, owner in ((chunks.base, base_label), (chunks.edited, label)):
        for part in chunks.parts():
            wrong = (~torch.isfinite(tensor[part])).nonzero()
            if len(wrong):
                index = part.start + int(wrong[0])
                return DeltaError(
                    f"{name} of {owner} holds {tensor[index].item()} at flat index {index}: a damaged model "
                    "cannot be merged; look at how it was trained or saved"
                )
    return DeltaError(f"{name}: the difference of {label} and {base_label} overflows float64")
