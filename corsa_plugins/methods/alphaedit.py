"""AlphaEdit+ and AlphaEdit as methods: closed-form edits of the weights of the model itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corsa_plugins.alphaedit import AlphaEditor, AlphaEditSettings, EditState, PreservedKeys
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.methods.effect import EFFECT, write_report
from corsa_plugins.methods.spec import MethodSpec, Session

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["AlphaEditMethod", "alphaedit", "alphaedit_plus"]

_STATE = "state"


@dataclass(frozen=True)
class AlphaEditMethod:
    """AlphaEdit+ (papers/alphaedit-plus.md) with ``settings``; each update is one batch of edits.

    Attributes:
        name: For tables and labels.
        statistics: Of the model's preserved keys.
        settings: As for the editor. With its three parts off it is AlphaEdit.
    """

    name: str
    statistics: PreservedKeys = field(repr=False)
    settings: AlphaEditSettings

    def describe(self) -> dict[str, Any]:
        """The settings. The statistics are bound to the model by their fingerprint, and taken to be the same."""
        return {"method": "AlphaEdit+", "name": self.name, "settings": self.settings.as_dict()}

    def start(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> Session:
        """An editor on the model; ``seed`` is not needed, as an edit draws nothing that its settings do not fix."""
        return _AlphaEditSession(model, tokenizer, self)

    def in_form(self, chat_template: bool) -> AlphaEditMethod:
        """With prompts in this form, unless the settings say in which."""
        values = self.settings.values
        if values.chat_template is not None:
            return self
        return replace(self, settings=replace(self.settings, values=replace(values, chat_template=chat_template)))


class _AlphaEditSession:
    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, method: AlphaEditMethod) -> None:
        self.model = model
        self._tokenizer = tokenizer
        self._method = method
        self._editor = AlphaEditor(model, tokenizer, method.statistics, method.settings)

    def update(self, requests: Sequence[EditRequest], folder: Path) -> None:
        report = self._editor.edit(requests, answers=False)
        self._editor.state.save(folder / _STATE)
        edited = len(requests) - len(report.not_edited)
        effect = {"taken": edited, "of": len(requests), "text": report.effect}
        write_report({EFFECT: effect, **report.as_dict()}, folder)

    def restore(self, folder: Path) -> None:
        state = EditState.load(folder / _STATE)
        method = self._method
        self._editor = AlphaEditor(self.model, self._tokenizer, method.statistics, method.settings, state=state)
        self._editor.apply()

    def close(self) -> None:
        self._editor.revert_all()


def _alphaedit_plus(statistics: PreservedKeys, settings: AlphaEditSettings | str) -> AlphaEditMethod:
    return AlphaEditMethod("AlphaEdit+", statistics, _settings(settings))


def _alphaedit(statistics: PreservedKeys, settings: AlphaEditSettings | str) -> AlphaEditMethod:
    return AlphaEditMethod("AlphaEdit", statistics, _settings(settings).alphaedit())


def _settings(settings: AlphaEditSettings | str) -> AlphaEditSettings:
    return settings if isinstance(settings, AlphaEditSettings) else AlphaEditSettings.load(settings)


alphaedit_plus = MethodSpec(
    name="alphaedit+",
    title="AlphaEdit+",
    summary="AlphaEdit with earlier edits weighed by their conflicts, a wider null space and smoothed targets",
    source="AlphaEdit⁺: Model Editing in the Presence of Conflicting and Inconsistent Knowledge, Algorithm 1",
    make=_alphaedit_plus,
    settings=AlphaEditSettings,
    reversible=True,
    rank=50,
    demo=True,
    easyedit="easyedit_ext.alphaedit_plus:EASYEDIT",
)

alphaedit = MethodSpec(
    name="alphaedit",
    title="AlphaEdit",
    summary="closed-form edits of the weights in the null space of what the model should keep",
    source="AlphaEdit: Null-Space Constrained Knowledge Editing for Language Models (ICLR 2025)",
    make=_alphaedit,
    settings=AlphaEditSettings,
    reversible=True,
    rank=40,
    demo=True,
)
