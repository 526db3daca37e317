"""The log-probabilities of new and old answers, followed while a trainer trains (papers/corsa.md, Figure 2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError
from corsa_plugins.methods.history import AnswerLooks, is_look, write_history
from trl_ext.checks import check_whole
from trl_ext.sharding import is_sharded

__all__ = ["HistoryCallback"]


class HistoryCallback(TrainerCallback):
    """Looks at the new and the old answers of requests before the first optimiser step, every so many steps, and after
    the last.

    What CoRSATrainer and DPOTrainer log is of the batches of the moment, each before its own step, and LoRA SFT does
    not run the old answers at all; these are the same requests at the same steps for every trainer of a causal language
    model. Looking changes nothing: the training is bit for bit what it is without.

    Records (:mod:`corsa_plugins.methods.history`) go into ``state.log_history``, so that a training that goes on from a
    checkpoint goes on with its history, and to no other logger. With several processes the first one looks and the
    others wait for it at the next step; that needs the whole model in each. Where a CoRSATrainer has sharded it, all
    look.

    >>> history = HistoryCallback(requests)  # doctest: +SKIP
    >>> DPOTrainer(..., callbacks=[history]).train()  # doctest: +SKIP
    >>> history_points(history.records, "DPO")  # doctest: +SKIP

    Args:
        requests: What the model is trained on.
        tokenizer: The model's; by default the trainer's ``processing_class``.
        looks: About how many looks after the first, evenly over the training.
        every: Optimiser steps between looks, in the place of ``looks``.
        path: Where the records are written when training ends.
        settings: ``most``, ``batch_size`` and ``chat_template`` of :class:`corsa_plugins.methods.history.AnswerLooks`.

    Attributes:
        records: So far, in order.

    Raises:
        SettingError: No requests, or ``looks`` or ``every`` under 1. When training begins: there is no tokenizer, or
            the model is spread over processes (ZeRO-3, tensor parallelism, FSDP of another trainer's).
    """

    def __init__(
        self,
        requests: Sequence[EditRequest],
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        looks: int = 20,
        every: int | None = None,
        path: Path | None = None,
        **settings: Any,
    ) -> None:
        for name, value in (("looks", looks), ("every", every)):
            if value is not None and value < 1:
                raise SettingError(f"{name} is {value}: it must be at least 1; leave the callback out for no history")
        if not requests:
            raise SettingError("no requests to follow: give those that the model is trained on")
        self.requests = tuple(requests)
        self.tokenizer = tokenizer
        self.looks = looks
        self.every = every
        self.path = path
        self.settings = settings
        self.records: list[dict[str, Any]] = []
        self._taker: AnswerLooks | None = None
        self._interval = 1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The first look; after a checkpoint, with the records from before it."""
        tokenizer = self.tokenizer if self.tokenizer is not None else kwargs.get("processing_class")
        if tokenizer is None:
            raise SettingError("the trainer has no processing_class: give the callback its tokenizer")
        check_whole(args, kwargs["model"])
        self._taker = AnswerLooks(tokenizer, self.requests, **self.settings)
        self._interval = self.every or max(1, round(state.max_steps / self.looks))
        self.records = [record for record in state.log_history if is_look(record)]
        self._look(state, kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A look if it is time for one."""
        last = state.global_step >= state.max_steps or control.should_training_stop
        if last or state.global_step % self._interval == 0:
            self._look(state, kwargs["model"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The last look, where nobody knew that the step before was the last."""
        if not args.load_best_model_at_end:  # the model would be that of an earlier step
            self._look(state, kwargs["model"])
        if self.path is not None and state.is_world_process_zero:
            write_history(self.records, self.path)

    def _look(self, state: TrainerState, model: Any) -> None:
        seen = self.records[-1]["step"] if self.records else -1
        looks = state.is_world_process_zero or is_sharded(model)
        if self._taker is None or not looks or seen >= state.global_step:
            return
        record = self._taker.look(model, state.global_step)
        if state.epoch is not None:
            record["epoch"] = state.epoch
        self.records.append(record)
        state.log_history.append(record)
