"""The paper's router: the base model reads a description of every part and names one of them (CoRSA paper, B.2).

The choice is read off the log-probabilities of the labels, not off a generated answer: it is deterministic, always one
of the labels, and made in batches. Descriptions can tell parts apart that are about different things, and need a model
that follows instructions; :class:`~corsa_plugins.bench.routing.nearest.NearestRouter` needs neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from corsa_plugins.bench.routing.base import last_positions
from corsa_plugins.bench.routing.router import ScoringRouter, check_descriptions, check_room
from corsa_plugins.bench.routing.templates import check_template
from corsa_plugins.errors import SettingError
from corsa_plugins.model.asking import score_targets
from corsa_plugins.model.borrowing import adapters_off
from corsa_plugins.model.tokenization import join

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["NEUTRAL", "LabelRouter"]

TEMPLATE = """\
Each of these collections answers questions of one kind.

{descriptions}

Which collection answers this question?
Question: {question}
Collection:"""

NEUTRAL = ("N/A", "[MASK]", "...")
"""Questions about nothing: what a label gets behind them is owed to the label (Zhao et al., 2021)."""


class LabelRouter(ScoringRouter):
    """Chooses one of several adapters for a question by asking the base model for a label.

    Args:
        model: The base model, or a ``PeftModel``, whose adapters are switched off to ask.
        tokenizer: Its tokenizer.
        descriptions: One for each adapter.
        template: With ``{descriptions}`` and ``{question}``.
        labels: One for each adapter; by default ``A``, ``B``, ..., which most vocabularies have as one token, also
            behind a space. Labels of one token cost one forward pass for all of them.
        calibrate: Take from each label's score what it gets when nothing is asked (contextual calibration; Zhao et al.,
            2021), for models that prefer a label whatever the question.
        chat_template: Ask through the chat template.
        batch_size: Sequences per forward pass.

    Raises:
        SettingError: No descriptions, a template without its fields, or labels that cannot be told apart.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        descriptions: Sequence[str],
        template: str = TEMPLATE,
        *,
        labels: Sequence[str] | None = None,
        calibrate: bool = False,
        chat_template: bool = False,
        batch_size: int = 64,
    ) -> None:
        check_descriptions(descriptions)
        check_template(template, "descriptions", "question")
        self.model = model
        self.tokenizer = tokenizer
        self.descriptions = list(descriptions)
        self.template = template
        self.calibrate = calibrate
        self.labels = _letters(len(descriptions)) if labels is None else list(labels)
        self.chat_template = chat_template
        self.batch_size = batch_size
        if len(self.labels) != len(descriptions):
            raise SettingError(f"{len(self.labels)} labels for {len(descriptions)} descriptions: give one each")
        for index, label in enumerate(self.labels):
            others = self.labels[:index] + self.labels[index + 1 :]
            if not label.strip() or any(other.startswith(label) for other in others):
                raise SettingError(f"label {label!r} is blank, or another begins with it: they cannot be told apart")

    def prompt(self, question: str) -> str:
        """What the base model is asked about a question."""
        listed = "\n".join(f"{label}: {text}" for label, text in zip(self.labels, self.descriptions, strict=True))
        # the question last, so that braces in it, or in a description, stay what they are
        before, after = self.template.split("{question}", 1)
        return before.replace("{descriptions}", listed) + question + after.replace("{descriptions}", listed)

    def scores(self, questions: Sequence[str]) -> list[list[float]]:
        """For each question, the log-probability of each label, in nats; with ``calibrate``, its gain by the question.

        Raises:
            SettingError: What is to be read is longer than the model's context.
        """
        scores = self._log_probs(questions)
        if not self.calibrate or not questions:
            return scores
        neutral = [sum(column) / len(NEUTRAL) for column in zip(*self._log_probs(NEUTRAL), strict=True)]
        return [[score - bias for score, bias in zip(row, neutral, strict=True)] for row in scores]

    def _log_probs(self, questions: Sequence[str]) -> list[list[float]]:
        pairs = [(self.prompt(question), label) for question in questions for label in self.labels]
        check_room(self.model, self.tokenizer, pairs, self.chat_template)
        quick = self._one_pass(pairs)
        if quick is not None:
            return quick
        with adapters_off(self.model):
            scores = score_targets(
                self.model, self.tokenizer, pairs, chat_template=self.chat_template, batch_size=self.batch_size
            )
        width = len(self.labels)
        return [[score.log_prob for score in scores[start : start + width]] for start in range(0, len(scores), width)]

    def _one_pass(self, pairs: Sequence[tuple[str, str]]) -> list[list[float]] | None:
        """Labels of one token each, of one forward pass for all of them; ``None`` where a label has more."""
        joined = [join(self.tokenizer, *pair, self.chat_template) for pair in pairs]
        if any(len(row.target_ids) > 1 for row in joined):
            return None
        width = len(self.labels)
        rows = [row.prompt_ids for row in joined[::width]]
        tokens = sorted({row.target_ids[0] for row in joined})

        def log_probs(output: Any) -> Tensor:
            logits = output.logits[:, -1]
            return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)[:, tokens]

        columns = {token: column for column, token in enumerate(tokens)}
        by_question = last_positions(self.model, rows, self.batch_size, log_probs)
        return [
            [float(row[columns[pair.target_ids[0]]]) for pair in joined[index * width : (index + 1) * width]]
            for index, row in enumerate(by_question)
        ]


def _letters(count: int) -> list[str]:
    if count > 26:
        raise SettingError(f"{count} adapters: give labels of your own, none of which begins another")
    return [chr(ord("A") + number) for number in range(count)]
