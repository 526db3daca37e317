"""AlphaEdit, AlphaEdit+ and R-SFT as methods: they change the weights of the model itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from corsa_plugins.alphaedit import AlphaEditor, AlphaEditSettings, EditState, PreservedKeys
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError
from corsa_plugins.methods.history import HISTORY, AnswerLooks, write_history
from corsa_plugins.methods.spec import REPORT, Session
from corsa_plugins.rsft import RSFTSettings, rsft
from corsa_plugins.rsft.selection import trainable_parameters
from corsa_plugins.settings import read_settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["AlphaEditMethod", "RSFTMethod", "alphaedit", "alphaedit_plus", "rsft_merged", "rsft_plain"]

_TESTBED_RSFT = RSFTSettings(layer=1)  # the second of three blocks; the paper's default, the sixth, is not there

_STATE = "state"
_WEIGHTS = "weights.safetensors"


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


class _AlphaEditSession:
    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, method: AlphaEditMethod) -> None:
        self.model = model
        self._tokenizer = tokenizer
        self._method = method
        self._editor = AlphaEditor(model, tokenizer, method.statistics, method.settings)

    def update(self, requests: Sequence[EditRequest], folder: Path) -> None:
        report = self._editor.edit(requests, answers=False)
        self._editor.state.save(folder / _STATE)
        (folder / REPORT).write_text(json.dumps(report.as_dict(), indent=1) + "\n", encoding="utf-8")

    def restore(self, folder: Path) -> None:
        state = EditState.load(folder / _STATE)
        method = self._method
        self._editor = AlphaEditor(self.model, self._tokenizer, method.statistics, method.settings, state=state)
        self._editor.apply()

    def close(self) -> None:
        self._editor.revert_all()


@dataclass(frozen=True)
class RSFTMethod:
    """R-SFT (papers/model-merging-for-knowledge-editing.md), merged or not as ``settings`` say.

    Each update starts from the weights that the one before left, and merging is with those: W + weight *
    Top_density(W_edited - W), W being the model before this update.

    Attributes:
        name: For tables and labels.
        settings: As for :func:`corsa_plugins.rsft.rsft`.
        history: Keep the log-probabilities of new and old answers before the training, after each epoch, and after the
            merging, which is one more point at the last step.
    """

    name: str
    settings: RSFTSettings = field(default_factory=RSFTSettings)
    history: bool = True

    def describe(self) -> dict[str, Any]:
        """The settings, without ``history``: looking changes nothing."""
        return {"method": "R-SFT", "name": self.name, "settings": asdict(self.settings)}

    def start(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> Session:
        """Copies what will train; ``seed`` is not needed, as the settings have their own for the samples' order."""
        return _RSFTSession(model, tokenizer, self)


class _RSFTSession:
    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, method: RSFTMethod) -> None:
        self.model = model
        self._tokenizer = tokenizer
        self._method = method
        self._parameters = trainable_parameters(model, method.settings)
        self._originals = {name: p.detach().to("cpu", copy=True) for name, p in self._parameters.items()}

    def update(self, requests: Sequence[EditRequest], folder: Path) -> None:
        from safetensors.torch import save_file

        # An interrupted update would be saved as a finished one if it kept what it had.
        settings = replace(self._method.settings, on_interrupt="restore")
        looks = AnswerLooks(self._tokenizer, requests, chat_template=settings.chat_template)
        records: list[dict[str, Any]] = []

        def look(epochs: int, steps: int) -> None:
            records.append({**looks.look(self.model, steps), "epoch": epochs})

        rsft(self.model, self._tokenizer, requests, settings, on_epoch=look if self._method.history else None)
        if records:
            write_history(records, folder / HISTORY)
        save_file({name: p.detach().cpu().contiguous() for name, p in self._parameters.items()}, folder / _WEIGHTS)

    def restore(self, folder: Path) -> None:
        from safetensors.torch import load_file

        self._put(load_file(folder / _WEIGHTS))

    def close(self) -> None:
        self._put(self._originals)

    @torch.no_grad()
    def _put(self, values: dict[str, torch.Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])


def alphaedit_plus(statistics: PreservedKeys, settings: AlphaEditSettings | str) -> AlphaEditMethod:
    """``alphaedit+``: with its three parts as the settings have them; these may be a preset's name or a YAML file."""
    return AlphaEditMethod("AlphaEdit+", statistics, _alphaedit_settings(settings))


def alphaedit(statistics: PreservedKeys, settings: AlphaEditSettings | str) -> AlphaEditMethod:
    """``alphaedit``: the same settings with the three parts of AlphaEdit+ off."""
    return AlphaEditMethod("AlphaEdit", statistics, _alphaedit_settings(settings).alphaedit())


def rsft_plain(settings: RSFTSettings | str | None = None) -> RSFTMethod:
    """``rsft``: the first stage alone; the settings may be a YAML file, or ``"testbed"``.

    Raises:
        SettingError: The settings ask for merging.
    """
    chosen = _rsft_settings(settings)
    if (chosen.weight, chosen.density) != (1, 1):
        raise SettingError(
            f"rsft with weight {chosen.weight} and density {chosen.density} is merged: use rsft-merged, or leave "
            "them at 1"
        )
    return RSFTMethod("R-SFT", chosen)


def rsft_merged(settings: RSFTSettings | str | None = None) -> RSFTMethod:
    """``rsft-merged``: both stages, with weight 0.8 and density 0.2 where the settings leave both at 1."""
    chosen = _rsft_settings(settings)
    if (chosen.weight, chosen.density) == (1, 1):
        chosen = replace(chosen, weight=0.8, density=0.2)
    return RSFTMethod("R-SFT merged", chosen)


def _alphaedit_settings(settings: AlphaEditSettings | str) -> AlphaEditSettings:
    return settings if isinstance(settings, AlphaEditSettings) else AlphaEditSettings.load(settings)


def _rsft_settings(settings: RSFTSettings | str | None) -> RSFTSettings:
    if isinstance(settings, RSFTSettings | None):
        return settings or RSFTSettings()
    if settings == "testbed":
        return _TESTBED_RSFT
    return RSFTSettings(**read_settings(settings, {one.name for one in fields(RSFTSettings)}))
