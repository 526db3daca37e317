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
from corsa_plugins.alphaedit.lookup.rows import rewriting_rows
from corsa_plugins.alphaedit.values.loss import BatchLoss, Reuse, exact_reuse
from corsa_plugins.alphaedit.values.settings import RateUnit, ValueSettings
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import CorsaError
from corsa_plugins.model.architecture import Architecture, find_architecture
from corsa_plugins.model.borrowing import frozen

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["NonFiniteValueError", "RateUnit", "ValueSettings", "Values", "find_values"]

logger = logging.getLogger(__name__)

REACHED = 0.5
_MAX_WARNINGS = 10
_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # Adam's


class NonFiniteValueError(CorsaError, FloatingPointError):
    """The loss of a value vector, or its gradient, is NaN or infinite; the message names the request."""


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
    """

    vectors: Tensor
    initial: Tensor
    probability: Tensor
    loss: Tensor
    steps: Tensor
    reached: Tensor


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

    The requests are optimised side by side, and leave their batch as they finish. Memory, beside the model: the
    activations of ``batch_size * (contexts + 1)`` short texts in the blocks above ``layer``.

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
        NonFiniteValueError: NaN or infinity, naming the request.
    """
    settings = settings or ValueSettings()
    parts = architecture or find_architecture(model)
    parts.block(layer)
    if settings.loss_layer is not None:
        parts.block(settings.loss_layer)
    check_contexts(contexts)
    rows = rewriting_rows(model, tokenizer, requests, contexts, settings.fact_token)
    names = [request.name(index) for index, request in enumerate(requests)]
    # rows of similar length side by side: less padding
    order = sorted(range(len(rows)), key=lambda index: -max(len(row.ids) for row in rows[index]))
    found: dict[int, _Found] = {}
    # disable=None: no bar where nobody watches, as in a log file
    with (
        frozen(model),
        tqdm(total=len(rows), desc="value vectors", disable=None if progress else True, leave=False) as bar,
    ):
        reuse: Reuse = "nothing"
        if settings.reuse_prefix:
            # the longest and the shortest, the one padded to the other
            reuse = exact_reuse(parts, layer, [rows[index] for index in {order[0], order[-1]}], settings, site)
        for start in range(0, len(order), settings.batch_size):
            chosen = order[start : start + settings.batch_size]
            loss = BatchLoss(parts, layer, [rows[index] for index in chosen], settings, reuse, site)
            for place, one in _optimise(loss, settings, [names[index] for index in chosen], bar).items():
                found[chosen[place]] = one
    values = _collect([found[index] for index in range(len(rows))])
    _warn(values, names)
    return values


@dataclass(frozen=True)
class _Found:
    vector: Tensor
    initial: Tensor
    loss: float
    log_prob: float
    steps: int


def _optimise(loss: BatchLoss, settings: ValueSettings, names: Sequence[str], bar: tqdm) -> dict[int, _Found]:
    """Adam on the deltas of a batch; every request as if it were alone."""
    found: dict[int, _Found] = {}
    active = list(range(len(loss)))
    delta = torch.zeros_like(loss.initial)
    first, second = torch.zeros_like(delta), torch.zeros_like(delta)
    half = any(p.dtype == torch.float16 for p in loss.architecture.model.parameters())
    scale = _Scale(2.0**12 if half else 1.0)
    for step in range(settings.steps):
        last = step == settings.steps - 1
        with torch.set_grad_enabled(not last):
            delta.requires_grad_(not last)
            now = loss(delta)
        totals, log_probs = now.total.tolist(), now.log_prob.tolist()
        for i, total in enumerate(totals):
            _require_finite(total, f"{names[active[i]]}: the loss of its value vector is {total}", step)
        done = [i for i, total in enumerate(totals) if last or total < settings.stop_loss]
        for i in done:
            vector = (loss.initial[i] + delta[i]).detach()
            found[active[i]] = _Found(vector, loss.initial[i], totals[i], log_probs[i], step)
        bar.update(len(done))
        if len(done) == len(active):
            break
        gradient = scale.gradient(now.total, delta)
        delta = delta.detach()
        if done:
            kept = [i for i in range(len(active)) if i not in set(done)]
            loss.keep(kept)
            active = [active[i] for i in kept]
            gradient, delta, first, second = (part[kept] for part in (gradient, delta, first, second))
        for i, norm in enumerate(torch.linalg.vector_norm(gradient, dim=-1).tolist()):
            _require_finite(norm, f"{names[active[i]]}: the gradient of its value vector is {norm}", step)
        first = _BETAS[0] * first + (1 - _BETAS[0]) * gradient
        second = _BETAS[1] * second + (1 - _BETAS[1]) * gradient.square()
        direction = first / (1 - _BETAS[0] ** (step + 1))
        direction = direction / ((second / (1 - _BETAS[1] ** (step + 1))).sqrt() + _EPSILON)
        delta = delta - _rates(loss, settings)[:, None] * direction
        norms, limits = torch.linalg.vector_norm(delta, dim=-1), settings.clamp * loss.norms
        delta = torch.where((norms > limits)[:, None], delta * (limits / norms)[:, None], delta)
    return found


def _rates(loss: BatchLoss, settings: ValueSettings) -> Tensor:
    """(n,), Adam's rate for each request."""
    if settings.lr_unit == "absolute":
        return torch.full_like(loss.norms, settings.lr)
    return settings.lr * loss.norms / loss.initial.shape[-1] ** 0.5


class _Scale:
    """float16 has no room for small gradients: the loss is scaled up, by less once that overflows."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def gradient(self, totals: Tensor, delta: Tensor) -> Tensor:
        while True:
            scale = torch.full_like(totals, self.factor)
            (found,) = torch.autograd.grad([totals], [delta], [scale], retain_graph=self.factor > 1)
            if self.factor == 1 or found.isfinite().all():
                return found / self.factor
            self.factor = max(1.0, self.factor / 16)


def _require_finite(value: float, what: str, step: int) -> None:
    if value - value != 0:
        raise NonFiniteValueError(f"{what}, after {step} updates; lower lr, or look for NaN in the model's weights")


def _collect(found: Sequence[_Found]) -> Values:
    probability = torch.tensor([one.log_prob for one in found], dtype=torch.float64).exp()
    return Values(
        vectors=torch.stack([one.vector for one in found], dim=1),
        initial=torch.stack([one.initial for one in found], dim=1),
        probability=probability,
        loss=torch.tensor([one.loss for one in found], dtype=torch.float64),
        steps=torch.tensor([one.steps for one in found]),
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
