"""Values with the norm that the model's own have from before any edit: NAS.

Liu et al., "Norm Anchors Make Model Edits Last" (arXiv:2602.02543)::

    v* = v_0 + delta                    what the FFN is to put out: v_0 is what it puts out at the bare prompt
    v*_NAS = nu v* / ||v*||             nu: the mean norm of v* in the original model
    target of the block = h - v_0 + v*_NAS

Each edit makes the weights longer, and longer weights the next v_0 and with it the next v*: the norms of both grow from
edit to edit. Anchored, v* stays as long as it would be in the original model. From the published code are the
rules that a share of the longest is left out of the mean, and that a v* of more than twice nu is no edit at all: v_0
stays in its place. There nu is of 1,000 requests of CounterFact, drawn at random and read without contexts; here it
is given, or of the first requests that are edited (:meth:`~corsa_plugins.alphaedit.batch.BatchEdit.anchored`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from corsa_plugins.settings import Positive, Settings

if TYPE_CHECKING:
    from corsa_plugins.alphaedit.values.search import Values

__all__ = ["NormAnchorSettings", "anchored", "reference_norm"]


@dataclass(frozen=True)
class NormAnchorSettings(Settings):
    """Which norm values are brought to.

    Attributes:
        norm: nu. ``None``: that of the edits in force that were made with one; where there are none, the mean norm of
            the values of the requests, found at the weights from before any edit.
        drop: The share of the largest norms that is left out of this mean.
        skip_over: A value of more than so many times nu is left out: its request is not edited.
    """

    norm: Annotated[Positive | None, Field(description="a norm above 0, or None for one to be found")] = None
    drop: Annotated[float, Field(ge=0, lt=1, description="a share of at least 0 and less than 1")] = 0.05
    skip_over: Annotated[float, Field(gt=1, description="a number above 1")] = 2.0


def reference_norm(norms: Tensor, drop: float) -> float:
    """nu: the mean of norms (N,), less the largest floor(drop * N) of them."""
    ordered = norms.double().sort().values
    return float(ordered[: len(ordered) - int(drop * len(ordered))].mean())


def anchored(found: Values, outputs: Tensor, norm: float, skip_over: float) -> Values:
    """The values with v* scaled to a norm.

    Args:
        found: As they were found.
        outputs: (d_out, N), v_0: what the FFN's down map puts out at the bare prompts, at the same weights.
        norm: nu.
        skip_over: See :class:`NormAnchorSettings`.

    Returns:
        The values, with the factors nu / ||v*|| as their ``scale``; 0 where v_0 stays.
    """
    outputs = outputs.to(found.vectors)
    own = outputs + (found.vectors - found.initial)
    norms = torch.linalg.vector_norm(own, dim=0)
    scale = torch.where(norms > 0, norm / norms, 1.0)
    scaled = found.initial - outputs + own * scale
    skipped = norms > skip_over * norm
    return replace(
        found,
        vectors=torch.where(skipped, found.initial, scaled),
        scale=torch.where(skipped, 0.0, scale).double().cpu(),
    )
