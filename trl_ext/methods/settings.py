"""How an adapter is trained by LoRA SFT, CoRSA and F-Learning alike."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any

from peft import LoraConfig
from pydantic import Field, InstanceOf

from corsa_plugins.errors import SettingError
from corsa_plugins.settings import InvalidSettingsError, Problem, Settings, plain, unknown_names
from corsa_plugins.testbed import LoraDefaults
from trl_ext.config import CoRSAConfig, paper_lora_config

__all__ = ["CAREFUL_SETTINGS", "TESTBED_SETTINGS", "AdapterSettings", "adapter_settings"]

_DEFAULTS = LoraDefaults()

TESTBED_SETTINGS: Mapping[str, Any] = {
    "learning_rate": _DEFAULTS.learning_rate,
    "num_train_epochs": _DEFAULTS.epochs,
    "per_device_train_batch_size": _DEFAULTS.batch_size,
    "gradient_accumulation_steps": _DEFAULTS.accumulation,
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
}
"""The testbed's own settings, for every method alike; the adapter is the paper's."""

CAREFUL_SETTINGS: Mapping[str, Any] = {
    "learning_rate": 5e-4,
    "lr_scheduler_type": "constant",
    "learned_at": 0.9,
    "num_train_epochs": 50,
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "keep_weight": 1.0,
    "keep_batch_size": 8,
    "gradient_checkpointing": False,
}
"""For few facts of a pretrained model: every fact until it is learned, at a rate that stays, and what should stay held.
The paper's 16 pairs a step go through the model at once: four times as many passes take half as long again.
``find_learning_rate`` beside them tries rates first, which takes about as long as the training of a few facts."""


@dataclass(frozen=True)
class AdapterSettings(Settings):
    """How an adapter is trained, for every method alike.

    Attributes:
        training: Fields of :class:`trl_ext.config.CoRSAConfig`, which has the paper's defaults; not ``output_dir`` and
            ``seed``, which are the run's. :data:`TESTBED_SETTINGS` for the testbed.
        lora: The adapter; ``None``: the paper's.
        conversational: Put prompts and answers through the tokenizer's chat template. ``None``: in the form that they
            are asked in, where something asks (:meth:`in_form`), else as they are.
        localized: The adapter reads at the requests' subjects alone (:mod:`trl_ext.methods.localized`), and grows by a
            rank for each; ``lora`` is not asked then. Every request needs a subject, and rates are of another order:
            0.05. To be tried on the model first: it spares what is not edited on some, and on the testbed it spoils it.
        answer_suffix: Text to put behind every answer.
        history_looks: About how often a training is looked at for its history (:mod:`corsa_plugins.methods.history`),
            evenly, after a first look before it; 0 keeps none. No part of what a method is: looking changes nothing.
    """

    training: Mapping[str, Any] = field(default_factory=dict)
    lora: Annotated[
        InstanceOf[LoraConfig] | None, Field(description="a mapping of fields of LoraConfig, or None for the paper's")
    ] = None
    conversational: bool | None = None
    localized: bool = False
    answer_suffix: str = ""
    history_looks: Annotated[int, Field(ge=0, description="an integer of at least 0, which is no history")] = 20

    def check(self) -> None:
        for name in ("output_dir", "seed"):
            if name in self.training:
                raise SettingError(f"{name} among the training settings: it is the run's own; leave it out")
        if self.localized and self.lora is not None:
            raise SettingError(
                "localized beside lora: a localized adapter has its own modules and rank; leave lora out"
            )

    @classmethod
    def presets(cls) -> tuple[str, ...]:
        return ("careful", "testbed")

    @classmethod
    def load(cls, source: str | os.PathLike[str]) -> AdapterSettings:
        """From a YAML file as in :meth:`from_dict`, or by name: ``"testbed"``, or ``"careful"`` for any other model."""
        named = {"testbed": cls(TESTBED_SETTINGS), "careful": cls(CAREFUL_SETTINGS, history_looks=8)}
        return named[str(source)] if str(source) in named else super().load(source)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AdapterSettings:
        """From fields of ``CoRSAConfig`` and, beside them, all other settings; ``lora``: what differs from the paper's.

        Raises:
            SettingError: Other names, in ``lora`` too, or values that cannot be.
        """
        own = [field.name for field in fields(cls) if field.name != "training"]
        known = [*own, *(field.name for field in fields(CoRSAConfig) if field.init)]
        problems, lora = unknown_names(data, known), data.get("lora")
        if isinstance(lora, Mapping):
            names = [field.name for field in fields(LoraConfig)]
            problems += [Problem(f"lora.{name}", text) for name, text in unknown_names(lora, names)]
        if problems:
            raise InvalidSettingsError(problems)
        chosen = {name: data[name] for name in own if name in data}
        if isinstance(lora, Mapping):
            chosen["lora"] = replace(paper_lora_config(), **lora)
        return cls({name: value for name, value in data.items() if name not in own}, **chosen)

    def as_dict(self) -> dict[str, Any]:
        own = super().as_dict()
        if self.lora is not None:
            paper = plain(paper_lora_config())
            own["lora"] = {name: value for name, value in own["lora"].items() if value != paper[name]}
        return {**own.pop("training"), **own}

    def in_form(self, chat_template: bool) -> AdapterSettings:
        """Settings that say in which form prompts are trained: as they are asked, where these do not say so."""
        return replace(self, conversational=chat_template) if self.conversational is None else self

    def describe(self) -> dict[str, Any]:
        """What a training depends on, as plain data."""
        lora = self.lora or paper_lora_config()
        # A set of module names has no order of its own.
        described = {k: sorted(v) if isinstance(v, set) else v for k, v in asdict(lora).items()}
        own = {name: value for name, value in vars(self).items() if name != "history_looks"}
        return {**own, "training": dict(self.training), "lora": described}


def adapter_settings(settings: AdapterSettings | str | None) -> AdapterSettings:
    """Settings as they are, or by a preset's name or a YAML file (:meth:`AdapterSettings.load`).

    Raises:
        SettingError: The file cannot be read, or holds other names.
    """
    if isinstance(settings, AdapterSettings | None):
        return settings or AdapterSettings()
    return AdapterSettings.load(settings)
