"""The router that asks behind which description a question is the most probable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from corsa_plugins.bench.routing.router import ScoringRouter, check_descriptions, check_room
from corsa_plugins.model.asking import score_targets
from corsa_plugins.model.borrowing import adapters_off

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["QuestionRouter"]


class QuestionRouter(ScoringRouter):
    """Chooses the adapter behind whose description the question itself is the most probable.

    For base models that follow no instructions; not of the CoRSA paper.

    Args:
        model: The base model, or a ``PeftModel``, whose adapters are switched off to ask.
        tokenizer: Its tokenizer.
        descriptions: One for each adapter.
        chat_template: Ask through the chat template.
        batch_size: Sequences per forward pass.

    Attributes:
        labels: The numbers of the adapters, from 1.

    Raises:
        SettingError: No descriptions, or a blank one.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        descriptions: Sequence[str],
        *,
        chat_template: bool = False,
        batch_size: int = 64,
    ) -> None:
        check_descriptions(descriptions)
        self.model = model
        self.tokenizer = tokenizer
        self.descriptions = list(descriptions)
        self.labels = [str(number) for number in range(1, len(descriptions) + 1)]
        self.chat_template = chat_template
        self.batch_size = batch_size

    def scores(self, questions: Sequence[str]) -> list[list[float]]:
        """For each question, its log-probability behind the description of each adapter, in nats.

        Raises:
            SettingError: What is to be read is longer than the model's context.
        """
        pairs = [(f"{text}\n", question) for question in questions for text in self.descriptions]
        check_room(self.model, self.tokenizer, pairs, self.chat_template)
        with adapters_off(self.model):
            scores = score_targets(
                self.model, self.tokenizer, pairs, chat_template=self.chat_template, batch_size=self.batch_size
            )
        width = len(self.descriptions)
        return [[score.log_prob for score in scores[start : start + width]] for start in range(0, len(scores), width)]
