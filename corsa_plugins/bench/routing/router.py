"""What routers have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from corsa_plugins.errors import SettingError
from corsa_plugins.model.tokenization import encode_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Router", "ScoringRouter", "check_descriptions", "check_room"]


class Router(Protocol):
    """Whatever chooses one of several adapters for a question."""

    @property
    def labels(self) -> Sequence[str]:
        """One for each adapter, in their order."""
        ...

    def route(self, questions: Sequence[str]) -> list[int]:
        """For each question the index of its adapter."""
        ...


class ScoringRouter(ABC):
    """A router that gives every adapter a score.

    Attributes:
        labels: One for each adapter, in their order.
    """

    labels: list[str]

    @abstractmethod
    def scores(self, questions: Sequence[str]) -> list[list[float]]:
        """For each question, a score for each adapter; more is better."""

    def route(self, questions: Sequence[str]) -> list[int]:
        """For each question the index of its adapter; the first of equals."""
        return [max(range(len(row)), key=row.__getitem__) for row in self.scores(questions)]


def check_descriptions(descriptions: Sequence[str]) -> None:
    """Refuse descriptions that say nothing.

    Raises:
        SettingError: There are none, or one is blank.
    """
    if not descriptions or not all(description.strip() for description in descriptions):
        raise SettingError("every adapter needs a description: give one each, none of them blank")


def check_room(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]], chat_template: bool
) -> None:
    """Refuse descriptions that the model has no room for.

    Args:
        model: The base model, or a ``PeftModel``.
        tokenizer: Its tokenizer.
        pairs: All that it is to read, in two pieces each.
        chat_template: Whether it is read through the chat template.

    Raises:
        SettingError: The longest pair has more tokens than the model's context.
    """
    longest = max(pairs, key=lambda pair: len(pair[0]) + len(pair[1]), default=None)
    room = getattr(model.config, "max_position_embeddings", None)
    if longest is None or not isinstance(room, int):
        return
    length = len(encode_prompt(tokenizer, f"{longest[0]} {longest[1]}", chat_template))
    if length > room:
        raise SettingError(
            f"the router reads {length} tokens to place a question, and the model has room for {room}: shorten the "
            "descriptions"
        )
