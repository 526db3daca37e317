"""LoRA SFT, CoRSA and F-Learning as methods of :mod:`corsa_plugins.bench.protocols`.

All three train one LoRA adapter through the updates (papers/corsa.md, 2.1: the same parameters phi), with the same
trainer, data and settings, so that a comparison is of the methods. F-Learning is in :mod:`trl_ext.flearning`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback

from corsa_plugins.data.preferences import fill_target_old, to_preference_rows
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError
from corsa_plugins.methods.history import HISTORY, write_history
from corsa_plugins.settings import read_settings
from trl_ext.config import CoRSAConfig
from trl_ext.head import remove_completion_head
from trl_ext.history import HistoryCallback
from trl_ext.rounds import CORSA, LORA_SFT, TESTBED_SETTINGS, quiet
from trl_ext.trainer import CoRSATrainer, paper_lora_config

if TYPE_CHECKING:
    from corsa_plugins.bench.protocols import Session
    from trl_ext.flearning import FLearningMethod

__all__ = ["AdapterSession", "AdapterSettings", "LoraMethod", "adapter_settings", "corsa", "f_learning", "lora_sft"]

ADAPTER = "adapter"


@dataclass(frozen=True)
class AdapterSettings:
    """How an adapter is trained, for every method alike.

    Attributes:
        training: Fields of :class:`trl_ext.config.CoRSAConfig`, which has the paper's defaults; not ``output_dir`` and
            ``seed``, which are the run's. ``trl_ext.rounds.TESTBED_SETTINGS`` for the testbed.
        lora: The adapter; ``None``: the paper's.
        conversational: Put prompts and answers through the tokenizer's chat template.
        answer_suffix: Text to put behind every answer.
        history_looks: About how often a training is looked at for its history (:mod:`corsa_plugins.methods.history`),
            evenly, after a first look before it; 0 keeps none. No part of what a method is: looking changes nothing.
    """

    training: Mapping[str, Any] = field(default_factory=dict)
    lora: LoraConfig | None = None
    conversational: bool = False
    answer_suffix: str = ""
    history_looks: int = 20

    def __post_init__(self) -> None:
        if isinstance(self.history_looks, bool) or not isinstance(self.history_looks, int) or self.history_looks < 0:
            raise SettingError(f"history_looks is {self.history_looks!r}: it must be a whole number, 0 for no history")
        for name in ("output_dir", "seed"):
            if name in self.training:
                raise SettingError(f"{name} among the training settings: it is the run's own; leave it out")

    def describe(self) -> dict[str, Any]:
        """What a training depends on, as plain data."""
        lora = self.lora or paper_lora_config()
        # A set of module names has no order of its own.
        described = {k: sorted(v) if isinstance(v, set) else v for k, v in asdict(lora).items()}
        own = {name: value for name, value in vars(self).items() if name != "history_looks"}
        return {**own, "training": dict(self.training), "lora": described}


@dataclass(frozen=True)
class LoraMethod:
    """An adapter that :class:`trl_ext.trainer.CoRSATrainer` trains on, update by update.

    Requests without ``target_old`` get the model's own answer of that moment; those that it answers with ``target_new``
    already are not trained on.

    Attributes:
        name: For tables and labels.
        own: What makes it this method: fields of ``CoRSAConfig`` that have precedence over the shared ones.
        settings: Shared with the other methods.
    """

    name: str
    own: Mapping[str, Any]
    settings: AdapterSettings = field(default_factory=AdapterSettings)

    def describe(self) -> dict[str, Any]:
        """Its settings."""
        return {"method": "LoRA", "name": self.name, "own": dict(self.own), **self.settings.describe()}

    def start(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> Session:
        """The model without an adapter.

        Raises:
            SettingError: The model has an adapter already.
        """
        return AdapterSession(model, tokenizer, self.settings, self.own, seed)


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
        if isinstance(model, PeftModel) or any(isinstance(module, BaseTunerLayer) for module in model.modules()):
            raise SettingError("the model has an adapter already: give the base model, or merge the adapter first")
        self.base = model
        self.tokenizer = tokenizer
        self.settings = settings
        self.own = own
        self.seed = seed
        self.peft: PeftModel | None = None
        self._before = _Before(model)

    @property
    def model(self) -> Any:
        return self.base if self.peft is None else self.peft

    def update(self, requests: Sequence[EditRequest], folder: Path) -> None:
        complete = self.filled(requests)
        if complete:
            history = self.history(complete)
            self.peft = self.train(complete, folder / ADAPTER, history=history)
            if history is not None:
                write_history(history.records, folder / HISTORY)

    def restore(self, folder: Path) -> None:
        if (folder / ADAPTER).is_dir():  # else the model knew every answer, and the update changed nothing
            self.load(folder / ADAPTER)

    def close(self) -> None:
        self.peft = None
        self._before.put_back()

    # --- parts -------------------------------------------------------------------------------------------------------

    def filled(self, requests: Sequence[EditRequest]) -> tuple[EditRequest, ...]:
        """The requests to train on, every one with ``target_old``."""
        found = fill_target_old(self.model, self.tokenizer, requests, chat_template=self.settings.conversational)
        return found.requests

    def history(self, requests: Sequence[EditRequest]) -> HistoryCallback | None:
        """For one training; ``None`` where none is to be kept."""
        looks, chat = self.settings.history_looks, self.settings.conversational
        return HistoryCallback(requests, self.tokenizer, looks=looks, chat_template=chat) if looks else None

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
        config |= {**self.settings.training, **self.own, **(settings or {})}
        rows = to_preference_rows(
            requests, conversational=self.settings.conversational, answer_suffix=self.settings.answer_suffix
        )
        with quiet():
            trainer = CoRSATrainer(
                model=self.model,
                args=CoRSAConfig(**config, output_dir=str(output), seed=self.seed),
                train_dataset=Dataset.from_list(rows),
                processing_class=self.tokenizer,
                # PEFT writes the model's own modules into the configuration it is given.
                peft_config=None if self.peft is not None else copy.deepcopy(self.settings.lora),
                callbacks=[history] if history is not None else None,
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            trainer.model.save_pretrained(output)
        return trainer.model

    def load(self, adapter: Path) -> None:
        """Put a saved adapter in the place of the present one."""
        self.drop()
        self.peft = PeftModel.from_pretrained(self.base, str(adapter), is_trainable=True)

    def drop(self) -> None:
        """Take the adapter off; the base weights stay as they are."""
        self.peft = None
        self._before.put_back()


class _Before:
    """A model's modules, flags and forward, as they were; the values of its weights are not among them.

    PEFT puts layers of its own in the place of linear ones, which it leaves as they are. Putting the old modules back
    takes any adapter off, also one that was put on only in part.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.children = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
        self.flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        self.modes = [(module, module.training) for module in model.modules()]
        self.attributes = {name: vars(model).get(name) for name in ("forward", "peft_config", "model_tags")}
        self.use_cache = getattr(model.config, "use_cache", None)
        self.checkpointing = _checkpointing(model)

    def put_back(self) -> None:
        model: Any = self.model
        remove_completion_head(model)
        for parent, name, child in self.children:
            if getattr(parent, name) is not child:
                setattr(parent, name, child)
        for name, value in self.attributes.items():
            if value is not None:
                setattr(model, name, value)
            elif name in vars(model):
                delattr(model, name)
        if getattr(model, "_require_grads_hook", None) is not None:
            model.disable_input_require_grads()
        if not self.checkpointing and _checkpointing(model):
            model.gradient_checkpointing_disable()
        if self.use_cache is not None:
            model.config.use_cache = self.use_cache
        for parameter, required in self.flags:
            parameter.requires_grad_(required)
            parameter.grad = None
        for module, training in self.modes:
            module.training = training


def _checkpointing(model: nn.Module) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def lora_sft(settings: AdapterSettings | str | None = None) -> LoraMethod:
    """``lora-sft``: CoRSA without DPO and without SAM, which is supervised fine-tuning of the adapter."""
    return LoraMethod(LORA_SFT.name, LORA_SFT.settings, adapter_settings(settings))


def corsa(settings: AdapterSettings | str | None = None) -> LoraMethod:
    """``corsa``."""
    return LoraMethod(CORSA.name, CORSA.settings, adapter_settings(settings))


def f_learning(
    settings: AdapterSettings | str | None = None,
    forgetting_rate: float | None = None,
    forgetting: Mapping[str, Any] | None = None,
) -> FLearningMethod:
    """``f-learning``: see :class:`trl_ext.flearning.FLearningMethod`."""
    from trl_ext.flearning import FORGETTING_RATE, FLearningMethod

    rate = FORGETTING_RATE if forgetting_rate is None else forgetting_rate
    return FLearningMethod(adapter_settings(settings), rate, forgetting or {})


def adapter_settings(settings: AdapterSettings | str | None) -> AdapterSettings:
    """Settings as they are, or of a YAML file, or those of the testbed by the name ``"testbed"``.

    The file holds fields of ``CoRSAConfig``, and beside them ``lora`` (fields of ``LoraConfig`` that differ from the
    paper's adapter), ``conversational``, ``answer_suffix`` and ``history_looks``.

    Raises:
        SettingError: The file cannot be read, or holds other names.
    """
    if isinstance(settings, AdapterSettings | None):
        return settings or AdapterSettings()
    if settings == "testbed":
        return AdapterSettings(TESTBED_SETTINGS)
    own = ("lora", "conversational", "answer_suffix", "history_looks")
    data = read_settings(settings, {*own, *(one.name for one in fields(CoRSAConfig) if one.init)})
    lora = data.pop("lora", None)
    shared = {name: data.pop(name) for name in own if name in data}
    if lora is not None:
        paper = paper_lora_config()
        unknown = set(lora) - {one.name for one in fields(paper)} if isinstance(lora, Mapping) else {"lora"}
        if unknown:
            raise SettingError(f"settings {settings}: lora holds {', '.join(sorted(unknown))}, not in LoraConfig")
        lora = replace(paper, **lora)
    return AdapterSettings(data, lora, **shared)


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """The LoRA layers of a model by name, with the adapter ``"default"``."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer) and "default" in getattr(module, "lora_A", {})
    }


def lora_factors(model: nn.Module) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Copies of each LoRA layer's (s B, A) in float32, in main memory: its change of the weight is their product."""
    return {
        name: (
            layer.lora_B["default"].weight.detach().to("cpu", torch.float32) * layer.scaling["default"],
            layer.lora_A["default"].weight.detach().to("cpu", torch.float32, copy=True),
        )
        for name, layer in lora_layers(model).items()
    }
