"""Edits as text, and which of them a question is about."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from corsa_plugins.data.requests import EditRequest, normalise_whitespace
from corsa_plugins.model.tokenization import separate
from corsa_plugins.settings import Count, Settings

__all__ = ["FactStore", "InContextSettings"]

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class InContextSettings(Settings):
    """How stored edits are put before a question.

    Attributes:
        facts: Most of them before one question.
        form: Of one, ``{fact}`` being its prompt and its new answer; after the published demonstrations' first line. It
            stands right before the next one, or before the question: end it with a new line, and not with a space,
            which tokenizers take for the beginning of the word that follows.
        chat_template: Edits are asked in chat, and so are their effects. ``None``: as they are asked, where something
            asks (:func:`corsa_plugins.methods.spec.in_form`), else as they are.
    """

    PRESETS: ClassVar[str] = "presets"

    facts: Count = 4
    form: str = "New Fact: {fact}\n"
    chat_template: bool | None = None

    def check(self) -> None:
        if self.form.count("{fact}") != 1:
            raise self.refused("form", "it must have {fact} once, where the fact stands")
        if self.form.endswith(" "):
            raise self.refused("form", "a space at its end belongs to the word that follows: end it with a new line")


class FactStore:
    """Edits in the order they were made.

    A question is about a fact if it names its subject, in the same letters, as words of their own; and not where the
    name is part of a longer one of another fact. A fact without a subject is asked about where its prompt is.

    Args:
        requests: The edits; of those with one prompt the last one holds.
        settings: How many, and in which form.
    """

    def __init__(self, requests: Iterable[EditRequest], settings: InContextSettings) -> None:
        self.settings = settings
        self.requests = tuple(requests)
        latest = {normalise_whitespace(request.prompt): request for request in self.requests}
        self._by_name: dict[str, list[EditRequest]] = {}
        for prompt, request in latest.items():
            self._by_name.setdefault(request.subject or prompt, []).append(request)

    def about(self, text: str) -> list[EditRequest]:
        """The facts that a text asks about, at most ``facts``, those that share most words with it last."""
        spans = [span for name in self._by_name if name in text for span in _spans(name, text)]
        named = {
            text[start:end]: None
            for start, end in spans
            if not any(a <= start and end <= b and (a, b) != (start, end) for a, b in spans)
        }
        words = set(_WORD.findall(text))
        found = [request for name in named for request in self._by_name[name]]
        shared = [len(words & set(_WORD.findall(request.prompt))) for request in found]
        order = sorted(range(len(found)), key=shared.__getitem__)
        return [found[place] for place in order[-self.settings.facts :]]

    def context(self, text: str) -> str:
        """What to read before a text that asks; empty where it asks about no fact."""
        facts = ("".join(separate(request.prompt, request.target_new)) for request in self.about(text))
        return "".join(self.settings.form.replace("{fact}", fact) for fact in facts)


def _spans(name: str, text: str) -> list[tuple[int, int]]:
    """Where a name stands in a text, as words of its own."""
    return [match.span() for match in re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", text)]
