"""Whether a trained adapter says what it was trained on: asked when the training is done, which it does not change."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from corsa_plugins.corsa.keeper import MOST_CHANGED, kept_sentence
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.methods.effect import effect_of, warn_if_few
from trl_ext.stopping import Standing

__all__ = ["is_zero", "learned"]

logger = logging.getLogger(__name__)

_CURE = "raise learning_rate or num_train_epochs"


def learned(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    *,
    chat_template: bool = False,
    standing: Standing | None = None,
    kept: tuple[Sequence[str], int] = ((), 0),
) -> dict[str, Any]:
    """The report of a training (:mod:`corsa_plugins.methods.effect`); warns where few of its facts were learned.

    Args:
        model: A ``PeftModel``, as the training left it.
        tokenizer: Its tokenizer.
        requests: It was trained on.
        chat_template: In this form.
        standing: Which facts reached the level of a training with ``learned_at``; reported under ``"training"``.
        kept: Which prompts that were to stay have changed, of how many that were watched; reported under ``"kept"``,
            and warned of where these are many.
    """
    effect = effect_of(model, tokenizer, requests, chat_template=chat_template)
    cure = f"the adapter is still zero, so the model is as it was; {_CURE}" if is_zero(model) else _CURE
    text = effect.sentence("learned", cure)
    warn_if_few(effect, text)
    told = effect.as_dict(text)
    if standing is not None:
        told["training"] = {
            "steps": standing.step,
            "learned": len(standing.learned) - len(standing.missing),
            "of": len(standing.learned),
            "not_learned": [effect.requests[index].name for index in standing.missing],
        }
    changed, watched = kept
    if watched:
        sentence = kept_sentence(changed, watched)
        logger.log(logging.WARNING if len(changed) > MOST_CHANGED * watched else logging.INFO, "%s", sentence)
        told["kept"] = {"changed": list(changed), "of": watched, "text": sentence}
    return told


def is_zero(model: nn.Module) -> bool:
    """Whether the LoRA adapters of a model change nothing: every B is zero, as before the first step."""
    names = [name for name, _ in model.named_parameters()]
    if any("lora_magnitude" in name for name in names):  # DoRA, which changes the weight by its lengths too
        return False
    factors = [p for name, p in model.named_parameters() if "lora_B" in name or "lora_embedding_B" in name]
    return bool(factors) and not any(bool(factor.any()) for factor in factors)
