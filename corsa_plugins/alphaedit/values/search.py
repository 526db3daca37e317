"""Value vectors: what a block should put out at the subject for the model to answer with the new target.

Meng et al., "Locating and Editing Factual Associations in GPT", Eq. 4, in the form of MEMIT and AlphaEdit.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from corsa_plugins.alphaedit.lookup.contexts import check_contexts
from corsa_plugins.alphaedit.lookup.rows import Row, rewriting_rows
from corsa_plugins.alphaedit.values.loss import BatchLoss, Reuse
from corsa_plugins.alphaedit.values.memory import side_by_side
from corsa_plugins.alphaedit.values.optimise import NonFiniteValueError, Optimum, optimise
from corsa_plugins.alphaedit.values.reuse import exact_reuse
from corsa_plugins.alphaedit.values.settings import RateUnit, ValueSettings
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.model.architecture import Architecture, find_architecture
from corsa_plugins.model.borrowing import frozen
from corsa_plugins.model.refetching import refetched

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["NonFiniteValueError", "RateUnit", "ValueSettings", "Values", "find_values", "joined"]

logger = logging.getLogger(__name__)

REACHED = 0.5
_MAX_WARNINGS = 10


@dataclass(frozen=True)
class Values:
    """What :func:`find_values` found, a column or an element per request, in their order.

    Attributes:
        vectors: (hidden, N), v* = h + delta, on the block's device.
        initial: (hidden, N), h: what the block puts out now.
        probability: (N,) of ``target_new`` behind the bare prompt with the vector in place, the product over its
            tokens, by the model's own logits.
        loss: (N,), the whole loss with the vector in place.
        steps: (N,) int64, updates made.
        reached: (N,) bool, whether the probability is at least 0.5: no other answer can be likelier.
        scale: (N,) float64, what v* was multiplied by to have a reference norm, 0 where it was left out
            (:mod:`~corsa_plugins.alphaedit.values.anchor`); ``None``: it is as it was found.
    """

    vectors: Tensor
    initial: Tensor
    probability: Tensor
    loss: Tensor
    steps: Tensor
    reached: Tensor
    scale: Tensor | None = None


def joined(values: Sequence[Values]) -> Values:
    """What was found one after the other, as if it had been found at once."""
    columns, elements = ("vectors", "initial"), ("probability", "loss", "steps", "reached")
    scales = [part.scale for part in values if part.scale is not None]
    return Values(
        **{name: torch.cat([getattr(part, name) for part in values], dim=1) for name in columns},
        **{name: torch.cat([getattr(part, name) for part in values]) for name in elements},
        scale=torch.cat(scales) if scales else None,
    )


# Nine parameters: a model's, a fact's, and what most callers leave to be found; a user calls it as it stands.
def find_values(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    layer: int,
    contexts: Sequence[str],
    settings: ValueSettings | None = None,
    *,
    architecture: Architecture | None = None,
    site: nn.Module | None = None,
    progress: bool = False,
) -> Values:
    """Look for the value vector of each request at block ``layer``.

    The requests are optimised side by side, and leave their batch as they finish; how many there are in it follows
    ``settings.batch_size`` or ``settings.memory``.

    Args:
        model: A causal language model of transformers. It is run, and left as it is.
        tokenizer: Its tokenizer; the padding side makes no difference.
        requests: With subjects.
        layer: The block whose output is to change, counted from 0.
        contexts: As :func:`corsa_plugins.alphaedit.lookup.contexts.generate_contexts` gives them; ``"{}"`` comes first.
        settings: By default AlphaEdit's.
        architecture: By default what :func:`corsa_plugins.model.architecture.find_architecture` finds.
        site: A module of that block whose output is to change instead, for instance its FFN's down map where the block
            does not add the FFN's output as it is.
        progress: Show a progress bar.

    Returns:
        The vectors, and how far each of them carries. Requests whose target stays improbable are there too, with a
        warning: their edits will do little.

    Raises:
        RequestError: No requests; or, listed together, those without a subject, too long, or with an empty target.
        SettingError: There is no such block, or the contexts are not templates.
        ArchitectureError: The block puts out several streams (Gemma 3n), and no ``site`` is given.
        NonFiniteValueError: NaN or infinity, naming the request.
    """
    settings = settings or ValueSettings()
    parts = architecture or find_architecture(model)
    parts.block(layer)
    if settings.loss_layer is not None:
        parts.block(settings.loss_layer)
    check_contexts(contexts)
    chat_template = bool(settings.chat_template)
    rows = rewriting_rows(model, tokenizer, requests, contexts, settings.fact_token, chat_template)
    names = [request.name(index) for index, request in enumerate(requests)]
    # what is run at every step has a similar length side by side: less padding
    order = sorted(range(len(rows)), key=lambda index: _length(rows[index]), reverse=True)
    optima: dict[int, Optimum] = {}
    # disable=None: no bar where nobody watches, as in a log file
    with (
        frozen(model),
        refetched(model),
        tqdm(total=len(rows), desc="value vectors", disable=None if progress else True, leave=False) as bar,
    ):
        reuse: Reuse = "nothing"
        if settings.reuse_prefix:
            # the longest and the shortest, the one padded to the other
            reuse = exact_reuse(parts, layer, [rows[index] for index in {order[0], order[-1]}], settings, site)
        size = side_by_side(parts, layer, [rows[index] for index in order], settings, reuse, site)
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            loss = BatchLoss(parts, layer, [rows[index] for index in chosen], settings, reuse, site)
            ended = optimise(loss, settings, [names[index] for index in chosen], bar)
            optima |= {chosen[number]: optimum for number, optimum in ended.items()}
    values = _collect([optima[index] for index in range(len(rows))])
    _warn(values, names)
    return values


def _length(rows: Sequence[Row]) -> tuple[int, int]:
    """Of a request: tokens of its longest text from the edited one on, and of its longest text."""
    return max(len(row.ids) - row.position for row in rows), max(len(row.ids) for row in rows)


def _collect(optima: Sequence[Optimum]) -> Values:
    probability = torch.tensor([optimum.log_prob for optimum in optima], dtype=torch.float64).exp()
    return Values(
        vectors=torch.stack([optimum.vector for optimum in optima], dim=1),
        initial=torch.stack([optimum.initial for optimum in optima], dim=1),
        probability=probability,
        loss=torch.tensor([optimum.loss for optimum in optima], dtype=torch.float64),
        steps=torch.tensor([optimum.steps for optimum in optima]),
        reached=probability >= REACHED,
    )


def _warn(values: Values, names: Sequence[str]) -> None:
    missed = [index for index, reached in enumerate(values.reached.tolist()) if not reached]
    for index in missed[:_MAX_WARNINGS]:
        logger.warning(
            "%s: no value vector reached its target, whose probability is %.3g with the best one found; more steps, a "
            "higher lr or clamp, or another layer may",
            names[index],
            float(values.probability[index]),
        )
    if len(missed) > _MAX_WARNINGS:
        logger.warning("... nor did %d more requests; see their probability", len(missed) - _MAX_WARNINGS)
