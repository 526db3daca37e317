"""What a model says to prompts: for the report of an edit, and for the choice between smoothed targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from corsa_plugins.alphaedit.settings import AlphaEditSettings
from corsa_plugins.data.requests import EditRequest, Probe
from corsa_plugins.model.asking import TargetScore, generate_answers, score_targets
from corsa_plugins.model.limits import longest_text
from corsa_plugins.model.tokenization import encode_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Answers", "ask", "validation_pairs", "validation_score"]


@dataclass(frozen=True)
class Answers:
    """What a model says to requests, in their order.

    Attributes:
        scores: Of ``target_new`` behind each prompt.
        texts: What it writes; ``None`` where that was not asked for.
    """

    scores: list[TargetScore]
    texts: list[str | None]


def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    settings: AlphaEditSettings,
    *,
    texts: bool,
) -> Answers:
    """Ask a model the edit prompts, and with ``texts`` let it answer in its own words."""
    pairs = [(request.prompt, request.target_new) for request in requests]
    batch_size, chat_template = settings.batch_size, bool(settings.values.chat_template)
    scores = score_targets(model, tokenizer, pairs, batch_size=batch_size, chat_template=chat_template)
    if not texts:
        return Answers(scores, [None] * len(requests))
    prompts = [request.prompt for request in requests]
    length = max(score.n_tokens for score in scores) + 4
    if (limit := longest_text(model)) is not None:
        length = min(length, limit - max(len(encode_prompt(tokenizer, prompt, chat_template)) for prompt in prompts))
    answers = generate_answers(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max(1, length),
        batch_size=batch_size,
        chat_template=chat_template,
    )
    return Answers(scores, [answer.text for answer in answers])


def validation_pairs(
    requests: Sequence[EditRequest], contexts: Sequence[str], keep: Sequence[Probe] = ()
) -> list[tuple[str, str]]:
    """(prompt, answer) pairs to choose smoothed targets on, none of them a test prompt.

    Args:
        requests: With validation prompts of their own, or none.
        contexts: The bare one first; behind the others stands the prompt of a request without any. Where there are no
            others it is the prompt itself.
        keep: With answers.
    """
    pairs = []
    for request in requests:
        prompts = request.validation_prompts or [c.replace("{}", request.prompt) for c in contexts[1:]]
        pairs += [(prompt, request.target_new) for prompt in prompts or [request.prompt]]
    return pairs + [(probe.prompt, str(probe.answer)) for probe in keep]


def validation_score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[tuple[str, str]],
    settings: AlphaEditSettings,
) -> float:
    """val_score of Algorithm 1, line 18, higher is better: see ``AlphaEditSettings.validation_score``."""
    chat_template = bool(settings.values.chat_template)
    scores = score_targets(model, tokenizer, pairs, batch_size=settings.batch_size, chat_template=chat_template)
    if settings.validation_score == "accuracy":
        return sum(score.top1 for score in scores) / len(scores)
    return float(torch.tensor([score.log_prob / score.n_tokens for score in scores]).double().exp().mean())
