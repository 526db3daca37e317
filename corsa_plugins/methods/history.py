"""How new and old answers fare while a model trains: the log-probabilities of papers/corsa.md, Figure 2.

A look is one record of plain numbers, as a trainer logs them::

    {"step": 12, "history/edit/logps/new": -3.1, "history/edit/logps/old": -1.9, "history/edit/margin": -1.2,
     "history/validation/logps/new": ..., ..., "seconds": 0.2}

``edit`` is what Figure 2 shows, the edit prompts themselves. ``validation`` is the first of each request's
``validation_prompts``, which no method trains on: how far the change carries over to other wordings. Paraphrases are
test data, and are not looked at during training.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import CorsaError
from corsa_plugins.files import atomic_write_text
from corsa_plugins.model.asking import score_targets
from corsa_plugins.model.borrowing import random_state_kept
from corsa_plugins.parsing import is_number, json_value

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["HISTORY", "AnswerLooks", "HistoryError", "is_look", "read_history", "spread", "write_history"]

HISTORY = "history.json"
"""Name of the file, in the folder of an update or an adapter."""

_T = TypeVar("_T")


class HistoryError(CorsaError, ValueError):
    """A history file that cannot be read."""


def spread(items: Sequence[_T], most: int) -> tuple[_T, ...]:
    """At most ``most`` of the items, at even distances and in their order; the first is always among them."""
    if len(items) <= most:
        return tuple(items)
    return tuple(items[len(items) * index // most] for index in range(most))


class AnswerLooks:
    """Takes looks at a model that is being trained on requests.

    Args:
        tokenizer: The model's.
        requests: What it is trained on. Those without ``target_old`` count for the new answers alone.
        most: Largest number of requests to score; of more, an even choice (:func:`spread`).
        batch_size: Sequences per forward pass.
        chat_template: Ask through the tokenizer's chat template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[EditRequest],
        *,
        most: int = 32,
        batch_size: int = 16,
        chat_template: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.requests = spread(requests, most)
        self.batch_size = batch_size
        self.chat_template = chat_template

    def look(self, model: PreTrainedModel, step: int) -> dict[str, Any]:
        """Score the answers with the model as it is: in evaluation mode, without gradients.

        Nothing of the model or of any random generator is different afterwards.

        Args:
            model: A causal language model; a ``PeftModel`` answers with its active adapter.
            step: Optimiser steps made so far.

        Returns:
            ``step``; for the ``edit`` and, where requests have them, the ``validation`` prompts, means over the
            requests of log p(target_new | prompt) and log p(target_old | prompt), each summed over the target's tokens,
            and of the margin, their difference, all in nats (a mean that is no finite number is left out); and the
            ``seconds`` it took.
        """
        started = time.monotonic()
        prompts = [("edit", request.prompt, request) for request in self.requests]
        prompts += [("validation", r.validation_prompts[0], r) for r in self.requests if r.validation_prompts]
        answers = [(prompt, request.target_new) for _, prompt, request in prompts]
        answers += [(prompt, r.target_old) for _, prompt, r in prompts if r.target_old is not None]
        with random_state_kept(_devices(model)):
            scores = score_targets(
                model, self.tokenizer, answers, batch_size=self.batch_size, chat_template=self.chat_template
            )
        new, old = scores[: len(prompts)], iter(scores[len(prompts) :])
        figures: dict[str, list[float]] = {}
        for (part, _, request), score in zip(prompts, new, strict=True):
            values = {"logps/new": score.log_prob}
            if request.target_old is not None:
                values["logps/old"] = next(old).log_prob
                values["margin"] = values["logps/new"] - values["logps/old"]
            for name, value in values.items():
                figures.setdefault(f"history/{part}/{name}", []).append(value)
        means = {name: sum(values) / len(values) for name, values in figures.items()}
        finite = {name: mean for name, mean in means.items() if isfinite(mean)}
        return {"step": step, **finite, "seconds": time.monotonic() - started}


def is_look(record: Mapping[str, Any]) -> bool:
    """Whether an entry of a trainer's log is a look."""
    return "step" in record and any(name.startswith("history/") for name in record)


def write_history(records: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Write looks as a JSON list, whole or not at all."""
    lines = ",\n".join(json.dumps(record) for record in records)
    atomic_write_text(path, f"[\n{lines}\n]\n" if lines else "[]\n")


def read_history(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """What :func:`write_history` wrote.

    Raises:
        HistoryError: It holds something else; the message names the file.
    """
    try:
        records = json_value(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise HistoryError(f"{path} is damaged ({error}): delete it; nothing else depends on it") from error
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise HistoryError(f"{path} is no list of log records: delete it; nothing else depends on it")
    for record in records:
        for name, value in record.items():
            if not (isinstance(value, str) if name == "stage" else is_number(value)):
                raise HistoryError(
                    f"{path} is damaged ({name} is {value!r:.60}): delete it; nothing else depends on it"
                )
    return records


def _devices(model: PreTrainedModel) -> list[torch.device]:
    """The GPUs a model is on, whose random generators its forward pass could draw from."""
    return sorted({p.device for p in model.parameters() if p.device.type == "cuda"}, key=str)
