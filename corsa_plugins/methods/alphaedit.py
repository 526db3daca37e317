"""AlphaEdit+ and AlphaEdit as methods: closed-form edits of the weights of the model itself.

The other methods of the same editor are in :mod:`corsa_plugins.methods.family`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from corsa_plugins.alphaedit import AlphaEditor, AlphaEditSettings, EditState, PreservedKeys
from corsa_plugins.alphaedit.auto import AUTO, Choice, Trial, settings_for
from corsa_plugins.alphaedit.statistics.statistics import KeyStatistics
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError
from corsa_plugins.methods.effect import EFFECT, write_report
from corsa_plugins.methods.spec import MethodSpec, Session

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["AlphaEditMethod", "alphaedit", "alphaedit_plus"]

logger = logging.getLogger(__name__)

_STATE = "state"


@dataclass(frozen=True)
class AlphaEditMethod:
    """The editor of AlphaEdit+ (papers/alphaedit-plus.md) with ``settings``; each update is one batch of edits.

    Attributes:
        name: For tables and labels.
        statistics: Of the model's preserved keys.
        settings: As for the editor. With its three parts off it is AlphaEdit. ``"auto"``: chosen for the model when it
            begins (:mod:`corsa_plugins.alphaedit.auto`).
        parts: Whether the three parts are on; said here where the settings are yet to be chosen.
        chat_template: Whether prompts are in chat; likewise.
        fitted: Makes of settings that were chosen for the model, which are AlphaEdit+'s, those of this method.
    """

    name: str
    statistics: PreservedKeys = field(repr=False)
    settings: AlphaEditSettings | Literal["auto"]
    parts: bool = True
    chat_template: bool | None = None
    fitted: Callable[[AlphaEditSettings], AlphaEditSettings] | None = None

    def describe(self) -> dict[str, Any]:
        """The settings. The statistics are bound to the model by their fingerprint, and taken to be the same."""
        settings = self.settings if isinstance(self.settings, str) else self.settings.as_dict()
        described: dict[str, Any] = {"method": "AlphaEdit+", "name": self.name, "settings": settings}
        if isinstance(self.settings, str):
            described |= {"parts": self.parts, "chat_template": bool(self.chat_template)}
        return described

    def start(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> Session:
        """An editor on the model; ``seed`` is not needed, as an edit draws nothing that its settings do not fix."""
        return _AlphaEditSession(model, tokenizer, self)

    def choose(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[EditRequest] = (),
        layers: Sequence[int] = (),
        report: Callable[[Trial], None] | None = None,
    ) -> Choice:
        """The settings for a model, and why: those given, or those chosen for it.

        Args:
            model: To be edited.
            tokenizer: Its tokenizer.
            requests: What is to be edited, and so not tried.
            layers: Where they are to be chosen: for these layers.
            report: Told of each edit on trial.

        Raises:
            SettingError: They are to be chosen, and the statistics are not those of ``corsa stats``.
        """
        if not isinstance(self.settings, str):
            return Choice(self.settings, "as they were given")
        if not isinstance(self.statistics, KeyStatistics):
            raise SettingError("settings auto: give statistics of corsa stats, which say what layers there are")
        choice = settings_for(
            model,
            tokenizer,
            self.statistics,
            requests,
            layers=layers,
            chat_template=self.chat_template,
            report=report,
        )
        logger.info("%s: settings chosen %s", self.name, choice.reason)
        if self.fitted is not None:
            return replace(choice, settings=self.fitted(choice.settings))
        return choice if self.parts else choice.alphaedit()

    def in_form(self, chat_template: bool) -> AlphaEditMethod:
        """With prompts in this form, unless the settings say in which."""
        if isinstance(self.settings, str):
            return replace(self, chat_template=chat_template)
        values = self.settings.values
        if values.chat_template is not None:
            return self
        return replace(self, settings=replace(self.settings, values=replace(values, chat_template=chat_template)))


class _AlphaEditSession:
    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, method: AlphaEditMethod) -> None:
        self.model = model
        self._tokenizer = tokenizer
        self._method = method
        self._settings: AlphaEditSettings | None = None
        self._made: AlphaEditor | None = None
        if not isinstance(method.settings, str):
            editor = self._editor()  # what does not suit the model is refused before anything is done
            for layer in editor.settings.layers if editor.settings.penalty == "outputs" else ():
                editor.edit_space(layer)

    def _editor(self, requests: Sequence[EditRequest] = (), state: EditState | None = None) -> AlphaEditor:
        """The editor; its settings are known when there are requests."""
        if self._settings is None:
            self._settings = self._method.choose(self.model, self._tokenizer, requests).settings
        if self._made is None or state is not None:
            statistics = self._method.statistics
            self._made = AlphaEditor(self.model, self._tokenizer, statistics, self._settings, state=state)
        return self._made

    def update(self, requests: Sequence[EditRequest], folder: Path) -> None:
        editor = self._editor(requests)
        report = editor.edit(requests, answers=False)
        editor.state.save(folder / _STATE)
        edited = len(requests) - len(report.not_edited)
        effect = {"taken": edited, "of": len(requests), "text": report.effect}
        write_report({EFFECT: effect, **report.as_dict()}, folder)

    def restore(self, folder: Path) -> None:
        state = EditState.load(folder / _STATE)
        if self._settings is None and state.batches:
            self._settings = state.batches[-1].settings  # those of the update are known: nothing is chosen again
        self._editor(state=state).apply()

    def close(self) -> None:
        if self._made is not None:
            self._made.revert_all()


def _alphaedit_plus(statistics: PreservedKeys, settings: AlphaEditSettings | str = AUTO) -> AlphaEditMethod:
    return AlphaEditMethod("AlphaEdit+", statistics, _settings(settings))


def _alphaedit(statistics: PreservedKeys, settings: AlphaEditSettings | str = AUTO) -> AlphaEditMethod:
    read = _settings(settings)
    return AlphaEditMethod("AlphaEdit", statistics, read if isinstance(read, str) else read.alphaedit(), parts=False)


def _settings(settings: AlphaEditSettings | str) -> AlphaEditSettings | Literal["auto"]:
    if isinstance(settings, AlphaEditSettings):
        return settings
    return "auto" if settings == AUTO else AlphaEditSettings.load(settings)


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
