"""The loss and the margin as functions of an adapter's parameters, and products with their Hessians."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from corsa_plugins.bench.curvature.lanczos import CurvatureError
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError
from corsa_plugins.model.running import target_logits
from corsa_plugins.model.tokenization import JoinedIds, join

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["FUNCTIONS", "Function", "weighted_rows"]

FUNCTIONS = ("sft_loss", "margin")
"""Mean negative log-likelihood over the tokens of all target_new, and m = log p(target_new | prompt) -
log p(target_old | prompt), mean over the requests that have a target_old."""


def weighted_rows(
    name: str, requests: Sequence[EditRequest], tokenizer: PreTrainedTokenizerBase, chat_template: bool
) -> list[tuple[JoinedIds, float]]:
    """Sequences with the weight of each one's log-probability in the function; those of a length together."""

    def joined(request: EditRequest, target: str) -> JoinedIds:
        return join(tokenizer, request.prompt, target, chat_template)

    if name == "sft_loss":
        sequences = [joined(request, request.target_new) for request in requests]
        tokens = sum(len(sequence.target_ids) for sequence in sequences)
        rows = [(sequence, -1 / tokens) for sequence in sequences]
    else:
        pairs = [(request, request.target_old) for request in requests if request.target_old is not None]
        if not pairs:
            raise SettingError("no request has a target_old: there is no margin; give it, or ask for sft_loss alone")
        rows = [(joined(request, request.target_new), 1 / len(pairs)) for request, _ in pairs]
        rows += [(joined(request, old), -1 / len(pairs)) for request, old in pairs]
    return sorted(rows, key=lambda row: len(row[0].prompt_ids) + len(row[0].target_ids))


class Function:
    """A weighted sum of sequences' log-probabilities, a micro-batch at a time.

    Args:
        model: What gives the log-probabilities.
        batches: Micro-batches of sequences, each with its weight.
        parameters: What it is a function of.

    Attributes:
        value: Of the function, once it was evaluated.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        batches: Sequence[Sequence[tuple[JoinedIds, float]]],
        parameters: list[nn.Parameter],
    ) -> None:
        self.model = model
        self.batches = batches
        self.parameters = parameters
        self.value = math.nan

    def product(self, vector: Sequence[Tensor]) -> list[Tensor]:
        """The Hessian's product with ``vector``: the gradient of (gradient . vector)."""
        total = [torch.zeros_like(part) for part in vector]
        value, used = 0.0, False
        for batch in self.batches:
            loss = self._evaluate(batch)
            value += float(loss.detach())
            if not loss.requires_grad:
                continue
            gradients = torch.autograd.grad(loss, self.parameters, create_graph=True, allow_unused=True)
            terms = [(g * v.to(g.dtype)).sum() for g, v in zip(gradients, vector, strict=True) if g is not None]
            used = used or bool(terms)
            slope: Any = sum(terms)
            if not terms or not slope.requires_grad:
                continue
            try:
                second = torch.autograd.grad(slope, self.parameters, allow_unused=True)
            except RuntimeError as error:
                raise CurvatureError(
                    f"the model has an operation without a second derivative ({error}): load it unquantised, with "
                    "attn_implementation='eager'"
                ) from error
            for part, h in zip(total, second, strict=True):
                if h is not None:
                    part.add_(h)
        if not used:
            raise CurvatureError(
                "the function does not depend on the parameters: is the adapter active, and not merged into the model?"
            )
        self.value = value
        return total

    def _evaluate(self, batch: Sequence[tuple[JoinedIds, float]]) -> Tensor:
        rows = [row for row, _ in batch]
        predicting = target_logits(self.model, rows)
        total = predicting[0].new_zeros(())
        for (row, weight), logits in zip(batch, predicting, strict=True):
            target = torch.tensor(row.target_ids, device=logits.device)
            total = total + weight * logits.log_softmax(-1).gather(-1, target[:, None]).sum()
        return total
