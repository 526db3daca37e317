"""Which facts a training has learned, looked at after every epoch; it ends when all are.

The level is that of :mod:`corsa_plugins.corsa.stopping`, which also keeps learned facts of a batch from pushing on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from corsa_plugins.corsa import LearnedLevel

__all__ = ["Standing", "StopWhenLearned"]

logger = logging.getLogger(__name__)

_SHOWN = 5


@dataclass(frozen=True)
class Standing:
    """How far the facts of a training data set are learned.

    Attributes:
        step: Optimiser steps taken.
        log_probs: log p(chosen | prompt) of each row, in nats, as it is trained on, end token included.
        learned: Whether each row has reached the level.
    """

    step: int
    log_probs: tuple[float, ...]
    learned: tuple[bool, ...]

    @property
    def missing(self) -> list[int]:
        """The rows that have not."""
        return [index for index, learned in enumerate(self.learned) if not learned]

    def sentence(self, level: LearnedLevel, name: Callable[[int], str]) -> str:
        """``21 of 24 facts learned; not 'The capital of ...' (p 0.41), ...``.

        Args:
            level: What was asked of them.
            name: What a row is called.
        """
        told = f"{len(self.learned) - len(self.missing)} of {len(self.learned)} facts learned in {self.step} steps"
        if not self.missing:
            return told
        asked = f"p(new) >= {level.probability:g}"
        asked += f" and log p(new) - log p(old) >= {level.margin:g}" if level.margin else ""
        shown = ", ".join(f"{name(i)} (log p {self.log_probs[i]:.2f})" for i in self.missing[:_SHOWN])
        more = f" and {len(self.missing) - _SHOWN} more" if len(self.missing) > _SHOWN else ""
        return f"{told} ({asked}); not {shown}{more}: raise num_train_epochs or learning_rate, or lower learned_at"


class StopWhenLearned(TrainerCallback):
    """Looks at the training's facts after every epoch, ends it when all are learned, and says in the end which are not.

    What it decides follows from the weights alone: a training that goes on from a checkpoint ends where one that was
    not interrupted does. With several processes each of them looks at its share, and all know the same.

    Args:
        look: Asks for the facts as they are; called by every process.
        level: When a fact is learned.
        name: What row ``index`` is called.

    Attributes:
        standing: The last look; ``None`` before the first.
    """

    def __init__(self, look: Callable[[], Standing], level: LearnedLevel, name: Callable[[int], str]) -> None:
        self.look = look
        self.level = level
        self.name = name
        self.standing: Standing | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget an earlier training."""
        self.standing = None

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look; stop if all are learned."""
        self.standing = self.look()
        learned = len(self.standing.learned) - len(self.standing.missing)
        facts = {"facts_learned": learned, "facts": len(self.standing.learned)}
        state.log_history.append({**facts, "step": state.global_step, "epoch": state.epoch})
        logger.info("Epoch %.0f: %d of %d facts learned.", state.epoch or 0, learned, facts["facts"])
        if not self.standing.missing:
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say how many are learned, and warn of those that are not."""
        if self.standing is None or self.standing.step != state.global_step or args.load_best_model_at_end:
            self.standing = self.look()
        if state.is_world_process_zero:
            logger.log(
                logging.WARNING if self.standing.missing else logging.INFO,
                "%s",
                self.standing.sentence(self.level, self.name),
            )
