"""Whether an update took: the new answers of its own requests, asked again when it is done.

The report of an update (:data:`corsa_plugins.methods.spec.REPORT`) says so for each request, and under :data:`EFFECT`
for all of them in one sentence, by whatever method::

    {"effect": {"taken": 5, "of": 60, "text": "5 of 60 facts learned: raise learning_rate or num_train_epochs"},
     "requests": [{"index": 0, "name": "0 ('Anna lives in')", "taken": true, "log_prob_new": -0.1, ...}, ...]}

Only the prompts that were edited are asked: paraphrases and other test prompts are for an evaluation.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corsa_plugins.data.requests import EditRequest
from corsa_plugins.files import atomic_write_text
from corsa_plugins.methods.spec import REPORT
from corsa_plugins.model.asking import score_targets
from corsa_plugins.model.borrowing import random_state_kept
from corsa_plugins.parsing import is_number, json_value

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "EFFECT",
    "MOST",
    "Effect",
    "RequestEffect",
    "effect_of",
    "is_told",
    "read_effect",
    "warn_if_few",
    "write_report",
]

logger = logging.getLogger(__name__)

EFFECT = "effect"
"""The key, in the report of an update, of what became of all of its requests."""

MOST = 0.9
"""An update of which a smaller share was taken is warned of."""


@dataclass(frozen=True)
class RequestEffect:
    """What became of one request.

    Attributes:
        index: Its place among the requests.
        name: Case id or number, and prompt.
        taken: Whether every token of ``target_new`` is the model's first choice now.
        log_prob_new: log p(target_new | prompt) now, in nats, summed over the tokens.
        log_prob_old: Likewise of ``target_old``; ``None`` where the request has none.
    """

    index: int
    name: str
    taken: bool
    log_prob_new: float
    log_prob_old: float | None = None


@dataclass(frozen=True)
class Effect:
    """What became of an update.

    Attributes:
        requests: In the order given.
        seconds: What it took to ask.
    """

    requests: tuple[RequestEffect, ...]
    seconds: float = 0.0

    @property
    def taken(self) -> int:
        """How many requests were taken."""
        return sum(request.taken for request in self.requests)

    @property
    def preferred(self) -> int:
        """How many new answers are likelier than the old ones, of those that have an old one."""
        return sum(r.log_prob_old is not None and r.log_prob_new > r.log_prob_old for r in self.requests)

    @property
    def few(self) -> bool:
        """Whether so few were taken that it is warned of."""
        return self.taken < MOST * len(self.requests)

    def sentence(self, verb: str, cure: str) -> str:
        """``5 of 60 facts learned (20 new answers are likelier than the old ones): raise ...``.

        Args:
            verb: What the facts are where the update took, in a word.
            cure: What to do where few are.
        """
        told = f"{self.taken} of {len(self.requests)} facts {verb}"
        if not self.few:
            return told
        compared = sum(request.log_prob_old is not None for request in self.requests)
        likelier = f" (of {self.preferred} the new answer is likelier than the old one)" if compared else ""
        return f"{told}{likelier}: {cure}"

    def as_dict(self, text: str) -> dict[str, Any]:
        """The report, as plain data."""
        head = {"taken": self.taken, "of": len(self.requests), "text": text, "seconds": self.seconds}
        return {EFFECT: head, "requests": [asdict(request) for request in self.requests]}


def effect_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    *,
    chat_template: bool = False,
    batch_size: int = 32,
) -> Effect:
    """Ask a model, as it is now, for the new and the old answers of requests: one pass over them, without gradients.

    Nothing of the model or of any random generator is different afterwards.

    Args:
        model: A causal language model; a ``PeftModel`` answers with its active adapter.
        tokenizer: Its tokenizer.
        requests: Of the update; at least one.
        chat_template: Ask through the tokenizer's chat template.
        batch_size: Sequences per forward pass.
    """
    started = time.monotonic()
    pairs = [(request.prompt, request.target_new) for request in requests]
    pairs += [(request.prompt, request.target_old) for request in requests if request.target_old is not None]
    devices = sorted({p.device for p in model.parameters() if p.device.type == "cuda"}, key=str)
    with random_state_kept(devices):
        scores = score_targets(model, tokenizer, pairs, batch_size=batch_size, chat_template=chat_template)
    old = iter(scores[len(requests) :])
    return Effect(
        tuple(
            RequestEffect(
                index=index,
                name=request.name(index),
                taken=score.top1,
                log_prob_new=score.log_prob,
                log_prob_old=None if request.target_old is None else next(old).log_prob,
            )
            for index, (request, score) in enumerate(zip(requests, scores, strict=False))
        ),
        time.monotonic() - started,
    )


def warn_if_few(effect: Effect, text: str) -> None:
    """Log an update's sentence: as a warning where few of its requests were taken."""
    logger.log(logging.WARNING if effect.few else logging.INFO, "%s", text)


def write_report(report: Mapping[str, Any], folder: Path) -> None:
    """Write the report of an update into its folder, whole or not at all."""
    atomic_write_text(folder / REPORT, json.dumps(_finite(report), indent=1, ensure_ascii=False) + "\n")


def is_told(effect: Any) -> bool:
    """Whether this is what a report says of all requests, or nothing, as where a method does not say."""
    if not isinstance(effect, Mapping):
        return True
    counts = all(is_number(effect.get(name)) for name in ("taken", "of"))
    return counts and isinstance(effect.get("text"), str)


def read_effect(folder: str | os.PathLike[str]) -> Mapping[str, Any]:
    """What the report of an update says of all its requests; empty where there is no report, or it does not say.

    Raises:
        ValueError: The file holds no JSON.
    """
    path = Path(folder) / REPORT
    report = json_value(path.read_text(encoding="utf-8")) if path.is_file() else None
    effect = report.get(EFFECT) if isinstance(report, Mapping) else None
    return effect if isinstance(effect, Mapping) else {}


def _finite(value: Any) -> Any:
    """JSON has no NaN: what is no number is left open."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not isfinite(value):
        return None
    return value
