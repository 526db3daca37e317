"""The router that compares a question with what each adapter was trained on."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from corsa_plugins.bench.routing.base import last_positions
from corsa_plugins.bench.routing.router import ScoringRouter
from corsa_plugins.bench.routing.templates import check_template
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError
from corsa_plugins.model.tokenization import encode_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["NearestRouter"]


class NearestRouter(ScoringRouter):
    """Chooses the adapter of the request that the base model takes to be nearest to the question.

    Every edit prompt, and every question, is represented by the base model's hidden state at its last position, where
    the answer is about to come, less the mean over the edit prompts. The score of an adapter is the largest cosine of
    the question with any of its requests. Not of the CoRSA paper: descriptions cannot tell parts apart that are about
    the same kinds of things, as parts in order of time often are, and small or base models do not follow the paper's
    instruction.

    Args:
        model: The base model, or a ``PeftModel``, whose adapters are switched off to ask.
        tokenizer: Its tokenizer.
        parts: The requests of each adapter; only their edit prompts are read.
        template: Put around prompts and questions alike, with ``{question}``; for instance a phrase that makes both end
            in the same words.
        layer: Behind which block, counted from 1, the hidden state is taken; by default two thirds of the way up.
        chat_template: Ask through the chat template.
        batch_size: Sequences per forward pass.

    Attributes:
        labels: The numbers of the adapters, from 1.

    Raises:
        SettingError: There are no parts, or one is empty; a template without its field; no such layer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        parts: Sequence[Sequence[EditRequest]],
        *,
        template: str = "{question}",
        layer: int | None = None,
        chat_template: bool = False,
        batch_size: int = 64,
    ) -> None:
        if not parts or not all(parts):
            raise SettingError("every adapter needs requests to be near to: give some for each")
        check_template(template, "question")
        blocks = int(model.config.get_text_config().num_hidden_layers)
        self.model = model
        self.tokenizer = tokenizer
        self.template = template
        self.layer = max(1, round(2 * blocks / 3)) if layer is None else layer
        if not 1 <= self.layer <= blocks:
            raise SettingError(f"layer is {layer}: the model has blocks 1 to {blocks}")
        self.chat_template = chat_template
        self.batch_size = batch_size
        self.labels = [str(number) for number in range(1, len(parts) + 1)]
        states = self._states([request.prompt for part in parts for request in part])
        self._mean = states.mean(0)
        self._prompts = _unit(states - self._mean)
        self._ends = list(itertools.accumulate(len(part) for part in parts))

    def scores(self, questions: Sequence[str]) -> list[list[float]]:
        """For each question, for each adapter, the cosine with its nearest request."""
        if not questions:
            return []
        cosines = _unit(self._states(questions) - self._mean) @ self._prompts.T
        starts = [0, *self._ends[:-1]]
        columns = [cosines[:, start:end].amax(1) for start, end in zip(starts, self._ends, strict=True)]
        scores: list[list[float]] = torch.stack(columns, 1).tolist()
        return scores

    def _states(self, questions: Sequence[str]) -> Tensor:
        """(questions, hidden size) in float64, on the CPU."""
        texts = [self.template.replace("{question}", question) for question in questions]
        rows = [encode_prompt(self.tokenizer, text, self.chat_template) for text in texts]
        return torch.stack(
            last_positions(
                self.model, rows, self.batch_size, lambda output: output.hidden_states[self.layer][:, -1].double(), True
            )
        )


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=-1)
