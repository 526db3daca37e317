"""Holding what a training should leave alone: prompts with what the model said to them before it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from corsa_plugins.corsa.keeping import divergence, keep_gradient, keep_penalty
from corsa_plugins.corsa.kept import Kept
from corsa_plugins.errors import SettingError
from corsa_plugins.model.borrowing import eval_mode, modes_kept
from corsa_plugins.model.running import target_logits
from corsa_plugins.model.short_attention import longest_row, short_attention
from corsa_plugins.model.tokenization import JoinedIds

__all__ = ["MOST_CHANGED", "Keeper", "kept_sentence"]

MOST_CHANGED = 0.1
"""A training that changes the first choice of a larger share of the watched prompts is warned of."""

_WATCHED_EACH = 5
_AT_ONCE = 32


class Keeper:
    """Prompts that are held, and some that are only watched: every fifth, which says how those fare that nobody holds.

    What the model says to them before the training is asked once, here, and kept in main memory, as float32
    log-probabilities over the vocabulary. Which prompts are held at a step follows from the seed and the step's number.

    Args:
        model: As it is before the training, with its adapter if it has one: what an earlier update taught stays too.
        kept: At least two.
        size: Prompts a step.
        seed: Of their order.
        precision: Enters the precision that the model is run in; by default its own.
    """

    def __init__(
        self,
        model: nn.Module,
        kept: Sequence[Kept],
        *,
        size: int,
        seed: int,
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        if len(kept) < 2:
            raise SettingError(f"{len(kept)} prompts to keep: give at least two, of which one is watched only")
        self.watched = list(kept[_WATCHED_EACH - 1 :: _WATCHED_EACH]) or list(kept[-1:])
        self.held = [prompt for prompt in kept if prompt not in self.watched]
        self.size = min(size, len(self.held))
        self.seed = seed
        self.precision = precision
        self._of_held = self._log_probs(model, self.held)
        self._of_watched = self._log_probs(model, self.watched)

    def gradient(
        self, model: nn.Module, parameters: Sequence[nn.Parameter], step: int, *, weight: float, tolerance: float
    ) -> tuple[list[Tensor], float]:
        """Of the penalty (:mod:`corsa_plugins.corsa.keeping`) on the step's prompts, and their mean divergence.

        Args:
            model: As it is; its modules are in evaluation mode meanwhile, as when the reference was taken.
            parameters: What the gradient is taken by.
            step: The step's number.
            weight, tolerance: Of the penalty.
        """
        return keep_gradient(self._divergence(model, step), parameters, weight, tolerance)

    def penalty(self, model: nn.Module, step: int, *, weight: float, tolerance: float) -> Tensor:
        """The penalty itself, to be added to a loss; arguments as for :meth:`gradient`."""
        return keep_penalty(self._divergence(model, step), weight, tolerance)[0]

    def penalty_of(self, logits: Sequence[Tensor], step: int, *, weight: float, tolerance: float) -> Tensor:
        """The penalty where the step's prompts have been run with something else.

        Args:
            logits: Of :meth:`rows`, each (held positions, V), of a model in evaluation mode.
            step, weight, tolerance: As for :meth:`gradient`.
        """
        return keep_penalty(self._divergence_of(logits, step), weight, tolerance)[0]

    def rows(self, step: int) -> list[JoinedIds]:
        """The prompts that a step holds, and the answers that they are held at."""
        return [self.held[index].ids for index in self.at(step)]

    def _divergence(self, model: nn.Module, step: int) -> Tensor:
        """Of the step's prompts, at each of their held positions."""
        rows = self.rows(step)
        with modes_kept(model), self.precision(), short_attention(model, longest_row(rows)):
            model.eval()
            return self._divergence_of(target_logits(model, rows), step)

    def _divergence_of(self, logits: Sequence[Tensor], step: int) -> Tensor:
        now = torch.cat(list(logits))
        reference = torch.cat([self._of_held[index] for index in self.at(step)])
        return divergence(now, reference.to(now.device))

    def at(self, step: int) -> list[int]:
        """Which of the held prompts a step holds: the order is another one each time all have had their turn."""
        n = len(self.held)
        places = range(step * self.size, (step + 1) * self.size)
        orders = {p: random.Random(f"{self.seed} {p}").sample(range(n), n) for p in {place // n for place in places}}
        return [orders[place // n][place % n] for place in places]

    def changed(self, model: nn.Module) -> list[str]:
        """The watched prompts to which the model's first choice, at any held position, is another than before."""
        now = self._log_probs(model, self.watched)
        return [
            prompt.prompt
            for prompt, before, after in zip(self.watched, self._of_watched, now, strict=True)
            if not torch.equal(before.argmax(-1), after.argmax(-1))
        ]

    def _log_probs(self, model: nn.Module, kept: Sequence[Kept]) -> list[Tensor]:
        found: list[Tensor] = []
        with eval_mode(model), self.precision():
            for start in range(0, len(kept), _AT_ONCE):
                rows = [prompt.ids for prompt in kept[start : start + _AT_ONCE]]
                found += [logits.log_softmax(-1).cpu() for logits in target_logits(model, rows)]
        return found


def kept_sentence(changed: Sequence[str], watched: int) -> str:
    """``3 of 12 prompts that were watched ...``, with what to do where these are many."""
    told = f"{len(changed)} of {watched} prompts that were watched have another first choice now"
    if len(changed) <= MOST_CHANGED * watched:
        return told
    shown = ", ".join(repr(" ".join(prompt.split())[-60:]) for prompt in changed[:3])
    return f"{told} ({shown}): lower learning_rate or keep_tolerance, or raise keep_weight"
