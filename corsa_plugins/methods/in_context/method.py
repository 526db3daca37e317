"""In-context answers as a method: an update adds its edits to the store.

The line that stands before a question is IKE's (Zheng et al., "Can We Edit Factual Knowledge by In-Context Learning?",
EMNLP 2023) for a new fact, without its demonstrations, which need a training set of edits with their rewordings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corsa_plugins.data.reading import read_requests
from corsa_plugins.data.requests import EditRequest, RequestError
from corsa_plugins.files import atomic_write_text
from corsa_plugins.methods.effect import effect_of, warn_if_few, write_report
from corsa_plugins.methods.in_context.reader import InContextModel
from corsa_plugins.methods.in_context.store import FactStore, InContextSettings
from corsa_plugins.methods.spec import STORE, MethodSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["InContextMethod", "in_context"]


@dataclass(frozen=True)
class InContextMethod:
    """Edits that are read before every question about them.

    Attributes:
        settings: How many, and in which form.
        name: For tables and labels.
    """

    settings: InContextSettings = field(default_factory=InContextSettings)
    name: str = "In context"

    def describe(self) -> dict[str, Any]:
        """The settings."""
        return {"method": "in context", "settings": self.settings.as_dict()}

    def start(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> InContextSession:
        """With an empty store; ``seed`` is not needed."""
        return InContextSession(model, tokenizer, self)

    def in_form(self, chat_template: bool) -> InContextMethod:
        """Asked in this form, unless the settings say in which."""
        if self.settings.chat_template is not None:
            return self
        return replace(self, settings=replace(self.settings, chat_template=chat_template))


class InContextSession:
    """One model with a store that grows.

    Attributes:
        model: The model itself before any update, then an :class:`InContextModel` on it.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, method: InContextMethod) -> None:
        self.model: Any = model
        self._base = model
        self._tokenizer = tokenizer
        self._settings = method.settings
        self._requests: tuple[EditRequest, ...] = ()

    def update(self, requests: Sequence[EditRequest], folder: Path) -> None:
        if not requests:
            raise RequestError("there are no edit requests: give at least one")
        self._add(requests)
        lines = "".join(request.model_dump_json(exclude_none=True) + "\n" for request in requests)
        atomic_write_text(folder / STORE, lines)
        chat = bool(self._settings.chat_template)
        effect = effect_of(self.model, self._tokenizer, requests, chat_template=chat)
        text = effect.sentence("answered", "the model makes little of what it is told before a question; change form")
        warn_if_few(effect, text)
        write_report(effect.as_dict(text), folder)

    def restore(self, folder: Path) -> None:
        self._add(read_requests(folder / STORE))

    def close(self) -> None:
        self.model = self._base

    def _add(self, requests: Sequence[EditRequest]) -> None:
        self._requests = (*self._requests, *requests)
        self.model = InContextModel(self._base, self._tokenizer, FactStore(self._requests, self._settings))


def _in_context(settings: InContextSettings | str | None = None) -> InContextMethod:
    if isinstance(settings, InContextSettings | None):
        return InContextMethod(settings or InContextSettings())
    return InContextMethod(InContextSettings.load(settings))


in_context = MethodSpec(
    name="in-context",
    title="In context",
    summary="changes no weight: the edits that a question is about are read before it, from a store",
    source="after IKE: Can We Edit Factual Knowledge by In-Context Learning? (EMNLP 2023), without demonstrations",
    make=_in_context,
    settings=InContextSettings,
    changes=("store",),
    rank=5,
)
