"""What a model answers to its edits' prompts with changes in its weights, which are put back afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from corsa_plugins.adapters.low_rank import LowRank
from corsa_plugins.alphaedit.weights import original_of, put_back, take, write_weight
from corsa_plugins.model.architecture import Architecture, LinearMap, find_architecture
from corsa_plugins.model.asking import score_targets

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from corsa_plugins.data.requests import EditRequest

__all__ = ["Asked", "changed", "share_answered"]


@dataclass(frozen=True)
class Asked:
    """The base model of an adapter, to check it against and to ask.

    Attributes:
        model: A causal language model, without an adapter, that holds none of the edits.
        tokenizer: Its tokenizer.
        architecture: Where its parts are, if they cannot be found.
        chat_template: Ask through the chat template; the batches of a state say so themselves.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    architecture: Architecture | None = None
    chat_template: bool = False

    @property
    def parts(self) -> Architecture:
        """Where its parts are."""
        return self.architecture or find_architecture(self.model)


@contextmanager
def changed(maps: Mapping[str, LinearMap], updates: Mapping[str, LowRank]) -> Iterator[None]:
    """Within the block the linear maps have the updates added, by name; afterwards their weights are as before.

    As everywhere, sums are made in float64 and rounded once.
    """
    before = {name: take(maps[name], "cpu") for name in updates}
    try:
        for name, update in updates.items():
            held = before[name]
            write_weight(maps[name], held if isinstance(held, Tensor) else original_of(maps[name]), [update])
        yield
    finally:
        for name, held in before.items():
            put_back(maps[name], held)


def share_answered(asked: Asked, requests: Sequence[EditRequest], chat_template: bool = False) -> float:
    """The share of the requests whose every target token is the first choice behind the edit prompt."""
    pairs = [(request.prompt, request.target_new) for request in requests]
    scores = score_targets(asked.model, asked.tokenizer, pairs, chat_template=chat_template)
    return sum(score.top1 for score in scores) / len(scores)
