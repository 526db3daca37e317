"""A level at which a fact counts as learned, and stops pushing until it falls back.

The paper's losses push for as many epochs as they are given, and what they go on to move, once the new answer is there,
is everything else. This stands beside Algorithm 1: it changes no loss, only which pairs of a batch reach the gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from corsa_plugins.corsa.objective import sequence_log_probs

__all__ = ["LearnedLevel"]


@dataclass(frozen=True)
class LearnedLevel:
    """When a pair counts as learned.

    Attributes:
        probability: Least p(y+|x), of the whole completion, end token included; in (0, 1].
        margin: Least log p(y+|x) - log p(y-|x), in nats. Without rejected rows there is no margin, and none is asked.
    """

    probability: float
    margin: float = 0.0

    def reached(self, log_probs: Tensor, paired: bool) -> Tensor:
        """Which pairs are learned, (B,) bool.

        Args:
            log_probs: (2B, T), zero off the completions; (B, T) of the chosen rows alone where ``paired`` is false.
            paired: Whether the second half of the rows is the rejected ones.
        """
        if not paired:
            return log_probs.sum(dim=1) >= log(self.probability)
        chosen, rejected = sequence_log_probs(log_probs)
        return (chosen >= log(self.probability)) & (chosen - rejected >= self.margin)

    @staticmethod
    def still(log_probs: Tensor, learned: Tensor) -> Tensor:
        """The same log-probabilities, of which those of learned pairs pass no gradient on.

        Args:
            log_probs: (2B, T) or (B, T).
            learned: (B,) bool.
        """
        rows = learned.repeat(len(log_probs) // len(learned))
        return torch.where(rows[:, None], log_probs.detach(), log_probs)
