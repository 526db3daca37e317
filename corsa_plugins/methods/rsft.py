"""R-SFT as a method, merged or not: it trains one FFN of the model itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError
from corsa_plugins.methods.effect import EFFECT, write_report
from corsa_plugins.methods.history import AnswerLooks
from corsa_plugins.methods.shared import trained_once
from corsa_plugins.methods.spec import MethodSpec
from corsa_plugins.methods.trained import TrainedSession
from corsa_plugins.model.identity import model_key
from corsa_plugins.parsing import json_value
from corsa_plugins.rsft import RSFTReport, RSFTSettings, rsft
from corsa_plugins.rsft.selection import trainable_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["RSFTMethod", "RSFTSession", "merged_settings", "rsft_merged", "rsft_plain", "settings_in_form"]

_TRAINED = "trained.json"
"""The report of a shared training, as the session wants it."""


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
        shared: A folder of trainings that another method may have made or may want; see :meth:`sharing`.
    """

    name: str
    settings: RSFTSettings = field(default_factory=RSFTSettings)
    history: bool = True
    shared: Path | None = None

    def describe(self) -> dict[str, Any]:
        """The settings, without ``history`` and ``shared``: neither looking nor sharing changes anything."""
        return {"method": "R-SFT", "name": self.name, "settings": asdict(self.settings)}

    def start(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> RSFTSession:
        """Copies what will train; ``seed`` is not needed, as the settings have their own for the samples' order."""
        return RSFTSession(model, tokenizer, self)

    def in_form(self, chat_template: bool) -> RSFTMethod:
        """With prompts in this form, unless the settings say in which."""
        return replace(self, settings=settings_in_form(self.settings, chat_template))

    def sharing(self, folder: Path) -> RSFTMethod:
        """With trainings in a folder that several methods share, each made by the first of them that wants it; one with
        a second stage makes its own."""
        return replace(self, shared=folder)


class RSFTSession(TrainedSession):
    """One model on its way through updates by R-SFT.

    Attributes:
        model: As it is now.
        report: Of the last update that was made here.
    """

    report: RSFTReport | None = None

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, method: RSFTMethod) -> None:
        super().__init__(model, tokenizer, trainable_parameters(model, method.settings))
        self._method = method

    def update(self, requests: Sequence[EditRequest], folder: Path) -> None:
        # An interrupted update would be saved as a finished one if it kept what it had.
        settings = replace(self._method.settings, on_interrupt="restore")
        if self._method.shared is None or settings.merges:
            self._train(requests, settings, folder)
            return

        def train(new: Path) -> None:
            self._train(requests, settings, new)
            (new / _TRAINED).write_text(json.dumps(asdict(self.report)), encoding="utf-8")  # type: ignore[arg-type]

        follows_from = {
            **model_key(self.model, self._tokenizer),
            "settings": asdict(settings),
            "history": self._method.history,
            "requests": [request.model_dump(mode="json") for request in requests],
        }
        if not trained_once(self._method.shared, follows_from, folder, train):
            self.restore(folder)
            self.report = RSFTReport.from_dict(json_value((folder / _TRAINED).read_text(encoding="utf-8")))
        (folder / _TRAINED).unlink()

    def _train(self, requests: Sequence[EditRequest], settings: RSFTSettings, folder: Path) -> None:
        looks = AnswerLooks(self._tokenizer, requests, chat_template=bool(settings.chat_template))
        records: list[dict[str, Any]] = []

        def look(epochs: int, steps: int) -> None:
            records.append({**looks.look(self.model, steps), "epoch": epochs})

        self.report = rsft(
            self.model, self._tokenizer, requests, settings, on_epoch=look if self._method.history else None
        )
        write_report(_plain(self.report), folder)
        self.keep(records, folder)


def _plain(report: RSFTReport) -> dict[str, Any]:
    """The report of an update by R-SFT, as plain data."""
    told = asdict(report)
    samples = zip(told.pop("samples"), report.samples, strict=True)
    return {
        EFFECT: {"taken": report.said, "of": len(report.samples), "text": report.effect},
        **told,
        "requests": [{**plain, "verdict": sample.verdict} for plain, sample in samples],
    }


def settings_in_form(settings: RSFTSettings, chat_template: bool) -> RSFTSettings:
    """Settings that say in which form prompts are trained: as they are asked, where they did not say so before."""
    return replace(settings, chat_template=chat_template) if settings.chat_template is None else settings


def merged_settings(settings: RSFTSettings | str | None = None) -> RSFTSettings:
    """Settings with the second stage, where they leave weight and density at 1: the paper's 0.8 and 0.2.

    With ``keep_weight`` the density is ``"auto"``: a change that is held is small, and a fifth of it says little.

    Raises:
        SettingError: They cannot be read.
    """
    chosen = _settings(settings)
    if chosen.merges:
        return chosen
    return replace(chosen, weight=0.8, density="auto" if chosen.keep_weight else 0.2)


def _rsft_plain(settings: RSFTSettings | str | None = None) -> RSFTMethod:
    chosen = _settings(settings)
    if chosen.merges:
        raise SettingError(
            f"rsft with weight {chosen.weight} and density {chosen.density} is merged: use rsft-merged, or leave "
            "them at 1"
        )
    return RSFTMethod("R-SFT", chosen)


def _rsft_merged(settings: RSFTSettings | str | None = None) -> RSFTMethod:
    return RSFTMethod("R-SFT merged", merged_settings(settings))


def _settings(settings: RSFTSettings | str | None) -> RSFTSettings:
    if isinstance(settings, RSFTSettings | None):
        return settings or RSFTSettings()
    return RSFTSettings.load(settings)


_PAPER = "Model Merging for Knowledge Editing"

rsft_plain = MethodSpec(
    name="rsft",
    title="R-SFT",
    summary="trains one FFN, each fact until the model says it and no longer",
    source=f"{_PAPER}, Algorithm 1",
    make=_rsft_plain,
    settings=RSFTSettings,
    rank=60,
    demo=True,
    easyedit="easyedit_ext.rsft:EASYEDIT",
)

rsft_merged = MethodSpec(
    name="rsft-merged",
    title="R-SFT merged",
    summary="R-SFT, then the largest fifth of what it changed, scaled by 0.8",
    source=f"{_PAPER}, Eq. 6",
    make=_rsft_merged,
    settings=RSFTSettings,
    rank=70,
)
