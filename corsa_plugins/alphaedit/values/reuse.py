"""What of a model can be run once and not again for it to be itself: tried, not believed."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import nn

from corsa_plugins.alphaedit.lookup.rows import Row
from corsa_plugins.alphaedit.values.loss import BatchLoss, Reuse
from corsa_plugins.alphaedit.values.settings import ValueSettings
from corsa_plugins.model.architecture import Architecture
from corsa_plugins.model.running import logits_at

__all__ = ["exact_reuse", "few_of"]

logger = logging.getLogger(__name__)


def few_of(rows: Sequence[Row]) -> list[Row]:
    """Of a request's texts the bare prompt, the longest one in a context, and the prompt of the KL term."""
    return [rows[0], *([max(rows[1:-1], key=lambda row: len(row.ids))] if len(rows) > 2 else []), rows[-1]]


@torch.no_grad()
def exact_reuse(
    architecture: Architecture,
    layer: int,
    requests: Sequence[Sequence[Row]],
    settings: ValueSettings,
    site: nn.Module | None = None,
) -> Reuse:
    """The most that can be reused for the model to be itself, tried on these requests with a delta in place.

    Blocks cannot be skipped if something flows past what they put out, nor tokens if a model does not go on from what
    it keeps of them as if it had read all at once. Of each request a few texts are enough.
    """
    requests = [few_of(rows) for rows in requests]
    whole = BatchLoss(architecture, layer, requests, settings, "nothing", site)
    delta = 0.1 * whole.initial.flip(-1)
    wanted = whole.logits(delta)[0]
    # The same arithmetic in another order; in half precision every block rounds what it puts out.
    rounding = max(1e-4, 16 * torch.finfo(next(architecture.model.parameters()).dtype).eps)
    tolerance = rounding * float(wanted.abs().nan_to_num(0, 0, 0).max())
    tried: tuple[Reuse, ...] = ("blocks and tokens", "blocks")
    for reuse in tried:
        try:
            loss = BatchLoss(architecture, layer, requests, settings, reuse, site)
            # What flows past the blocks is, from here on, of another text.
            logits_at(architecture, loss.texts.ids.flip(0), loss.texts.mask.flip(0), *loss.texts.wanted)
            given = loss.logits(delta)[0]
        except (NotImplementedError, KeyError):  # Gemma 4 looks up keys that an earlier block has made
            continue
        # a NaN is reported with its request later on
        if torch.allclose(given, wanted, rtol=0, atol=tolerance, equal_nan=True):
            return reuse
        logger.info(
            "%s: logits differ by up to %.3g when %s up to block %d are not run again; they will be",
            type(architecture.model).__name__,
            float((given - wanted).abs().max()),
            reuse,
            layer,
        )
    return "nothing"
