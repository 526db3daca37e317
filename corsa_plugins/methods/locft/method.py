"""LocFT-BF as a method: it trains one weight of the model itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corsa_plugins.data.requests import EditRequest
from corsa_plugins.methods.effect import effect_of, warn_if_few, write_report
from corsa_plugins.methods.history import AnswerLooks
from corsa_plugins.methods.locft.settings import LocFTSettings
from corsa_plugins.methods.locft.train import locft, weights_of
from corsa_plugins.methods.spec import MethodSpec
from corsa_plugins.methods.trained import TrainedSession

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["LocFTMethod", "LocFTSession", "locft_bf"]


@dataclass(frozen=True)
class LocFTMethod:
    """LocFT-BF; each update starts from the weights that the one before left.

    Attributes:
        settings: As for :func:`corsa_plugins.methods.locft.train.locft`.
        history: Keep the log-probabilities of new and old answers before the training and after each epoch.
        name: For tables and labels.
    """

    settings: LocFTSettings = field(default_factory=LocFTSettings)
    history: bool = True
    name: str = "LocFT-BF"

    def describe(self) -> dict[str, Any]:
        """The settings, without ``history``: looking changes nothing."""
        return {"method": "LocFT-BF", "settings": self.settings.as_dict()}

    def start(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> LocFTSession:
        """Copies what will train; ``seed`` is of the order of the requests."""
        return LocFTSession(model, tokenizer, self, seed)

    def in_form(self, chat_template: bool) -> LocFTMethod:
        """With prompts in this form, unless the settings say in which."""
        if self.settings.chat_template is not None:
            return self
        return replace(self, settings=replace(self.settings, chat_template=chat_template))


class LocFTSession(TrainedSession):
    """One model on its way through updates by LocFT-BF.

    Attributes:
        model: As it is now.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, method: LocFTMethod, seed: int
    ) -> None:
        super().__init__(model, tokenizer, weights_of(model, method.settings))
        self._method = method
        self._seed = seed

    def update(self, requests: Sequence[EditRequest], folder: Path) -> None:
        settings, chat = self._method.settings, bool(self._method.settings.chat_template)
        looks = AnswerLooks(self._tokenizer, requests, chat_template=chat)
        records: list[dict[str, Any]] = []

        def look(epochs: int, steps: int) -> None:
            records.append({**looks.look(self.model, steps), "epoch": epochs})

        on_epoch = look if self._method.history else None
        report = locft(self.model, self._tokenizer, requests, settings, seed=self._seed, on_epoch=on_epoch)
        effect = effect_of(self.model, self._tokenizer, requests, chat_template=chat)
        text = effect.sentence("learned", "raise epochs or learning_rate, or train another layer")
        warn_if_few(effect, text)
        write_report({**effect.as_dict(text), **asdict(report)}, folder)
        self.keep(records, folder)


def _locft_bf(settings: LocFTSettings | str | None = None) -> LocFTMethod:
    if isinstance(settings, LocFTSettings | None):
        return LocFTMethod(settings or LocFTSettings())
    return LocFTMethod(LocFTSettings.load(settings))


locft_bf = MethodSpec(
    name="locft-bf",
    title="LocFT-BF",
    summary="fine-tunes one down projection on all requests in turn, in batches, until the mean loss is small",
    source="Fine-tuning Done Right in Model Editing (ICLR 2026)",
    make=_locft_bf,
    settings=LocFTSettings,
    rank=55,
    easyedit="easyedit_ext.locft:EASYEDIT",
)
