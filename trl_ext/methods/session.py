"""A model and the adapter that is trained on it, update by update."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback

from corsa_plugins.corsa.kept import Kept, make_kept
from corsa_plugins.data.preferences import fill_target_old, to_preference_rows
from corsa_plugins.data.requests import EditRequest, RequestError
from corsa_plugins.errors import SettingError
from corsa_plugins.methods.effect import write_report
from corsa_plugins.methods.history import HISTORY, write_history
from corsa_plugins.model.quantised import keep_layout
from trl_ext._trl import carries_adapter
from trl_ext.checks import check_in_memory
from trl_ext.config import CoRSAConfig
from trl_ext.effect import learned
from trl_ext.history import HistoryCallback
from trl_ext.methods.adapter import Unadapted, lora_factors
from trl_ext.methods.localized import localized_adapter
from trl_ext.methods.settings import AdapterSettings
from trl_ext.stopping import Standing
from trl_ext.trainer import CoRSATrainer

__all__ = ["ADAPTER", "AdapterSession", "quiet"]

ADAPTER = "adapter"
"""Name of the adapter's folder, in the folder of an update."""


class AdapterSession:
    """A model and the adapter that trains on it.

    ``seed`` decides the adapter's initial values and the order of the data, in every update alike.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: AdapterSettings,
        own: Mapping[str, Any],
        seed: int,
    ) -> None:
        if isinstance(model, PeftModel) or carries_adapter(model):
            raise SettingError("the model has an adapter already: give the base model, or merge the adapter first")
        check_in_memory(model)
        keep_layout(model)  # the requests are asked first
        self.base = model
        self.tokenizer = tokenizer
        self.settings = settings
        self.conversational = bool(settings.conversational)
        self.own = own
        self.seed = seed
        self.peft: PeftModel | None = None
        # Of the last training.
        self.standing: Standing | None = None
        self.kept: tuple[Sequence[str], int] = ((), 0)
        self._unadapted = Unadapted(model)

    @property
    def model(self) -> Any:
        return self.base if self.peft is None else self.peft

    def update(self, requests: Sequence[EditRequest], folder: Path) -> None:
        if not requests:
            raise RequestError("there are no edit requests: give at least one")
        complete = self.filled(requests)
        if complete:
            history = self.history(complete)
            self.peft = self.train(complete, folder / ADAPTER, history=history)
            self.report(complete, folder)
            if history is not None:
                write_history(history.records, folder / HISTORY)

    def restore(self, folder: Path) -> None:
        if (folder / ADAPTER).is_dir():  # else the model knew every answer, and the update changed nothing
            self.load(folder / ADAPTER)

    def close(self) -> None:
        self.peft = None
        self._unadapted.put_back()

    # --- parts -------------------------------------------------------------------------------------------------------

    def filled(self, requests: Sequence[EditRequest]) -> tuple[EditRequest, ...]:
        """The requests to train on, every one with ``target_old``."""
        return fill_target_old(self.model, self.tokenizer, requests, chat_template=self.conversational).requests

    def history(self, requests: Sequence[EditRequest]) -> HistoryCallback | None:
        """For one training; ``None`` where none is to be kept."""
        looks, chat = self.settings.history_looks, self.conversational
        return HistoryCallback(requests, self.tokenizer, looks=looks, chat_template=chat) if looks else None

    def report(self, requests: Sequence[EditRequest], folder: Path) -> None:
        """Write what the training of the requests came to, and warn where it is little."""
        settings: Any = {"chat_template": self.conversational, "standing": self.standing, "kept": self.kept}
        write_report(learned(self.model, self.tokenizer, requests, **settings), folder)

    def train(
        self,
        requests: Sequence[EditRequest],
        output: Path,
        settings: Mapping[str, Any] | None = None,
        history: HistoryCallback | None = None,
    ) -> PeftModel:
        """Train the adapter, or a new one if there is none, and save it to ``output``.

        Args:
            requests: With ``target_old``.
            output: A folder.
            settings: Of this training; they have precedence over all others.
            history: Gets the records of this training.
        """
        config: dict[str, Any] = {"disable_tqdm": True, "report_to": "none", "save_strategy": "no"}
        config["use_cpu"] = not torch.accelerator.is_available()  # without one, transformers asks to be told
        config |= {**self.settings.training, **self.own, **(settings or {})}
        rows = to_preference_rows(
            requests, conversational=self.conversational, answer_suffix=self.settings.answer_suffix
        )
        kept: list[Kept] = []
        if config.get("keep_weight"):
            kept = make_kept(self.model, self.tokenizer, requests, chat_template=self.conversational, seed=self.seed)
        with quiet():
            if self.settings.localized:
                self._localize(requests, kept)
            trainer = CoRSATrainer(
                model=self.model,
                args=CoRSAConfig(**config, output_dir=str(output), seed=self.seed),
                train_dataset=Dataset.from_list(rows),
                processing_class=self.tokenizer,
                # PEFT writes the model's own modules into the configuration it is given.
                peft_config=None if self.peft is not None else copy.deepcopy(self.settings.lora),
                callbacks=[history] if history is not None else None,
                kept=kept,
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            trainer.model.save_pretrained(output)
        self.standing, self.kept = trainer.learned, trainer.kept_changed()
        return trainer.model

    def _localize(self, requests: Sequence[EditRequest], kept: Sequence[Kept]) -> None:
        """Put on an adapter that reads at the requests' subjects, and holds what the present one does."""
        earlier = {} if self.peft is None else _in_use(lora_factors(self.peft))
        self.drop()
        self.peft = localized_adapter(
            self.base, self.tokenizer, requests, kept=kept, earlier=earlier, chat_template=self.conversational
        )

    def load(self, adapter: Path) -> None:
        """Put a saved adapter in the place of the present one."""
        self.drop()
        self.peft = PeftModel.from_pretrained(self.base, str(adapter), is_trainable=True)

    def drop(self) -> None:
        """Take the adapter off; the base weights stay as they are."""
        self.peft = None
        self._unadapted.put_back()


def _in_use(factors: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    """An adapter's (s B, A) without the ranks that change nothing in any layer."""
    used = torch.stack([b.abs().sum(0) > 0 for b, _ in factors.values()]).any(0)
    return {name: (b[:, used], a[used]) for name, (b, a) in factors.items()}


@contextmanager
def quiet() -> Iterator[None]:
    """Without the frameworks' bars and notices, which are about a single training among many."""
    verbosity = transformers.logging.get_verbosity()
    bars = datasets.utils.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    datasets.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            datasets.utils.logging.enable_progress_bar()
