"""How an adapter is trained by LoRA SFT, CoRSA and F-Learning alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from peft import LoraConfig

from corsa_plugins.errors import SettingError
from corsa_plugins.settings import read_settings
from corsa_plugins.testbed import LoraDefaults
from trl_ext.config import CoRSAConfig
from trl_ext.trainer import paper_lora_config

__all__ = ["TESTBED_SETTINGS", "AdapterSettings", "adapter_settings"]

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


@dataclass(frozen=True)
class AdapterSettings:
    """How an adapter is trained, for every method alike.

    Attributes:
        training: Fields of :class:`trl_ext.config.CoRSAConfig`, which has the paper's defaults; not ``output_dir`` and
            ``seed``, which are the run's. :data:`TESTBED_SETTINGS` for the testbed.
        lora: The adapter; ``None``: the paper's.
        conversational: Put prompts and answers through the tokenizer's chat template. ``None``: in the form that they
            are asked in, where something asks (:meth:`in_form`), else as they are.
        answer_suffix: Text to put behind every answer.
        history_looks: About how often a training is looked at for its history (:mod:`corsa_plugins.methods.history`),
            evenly, after a first look before it; 0 keeps none. No part of what a method is: looking changes nothing.
    """

    training: Mapping[str, Any] = field(default_factory=dict)
    lora: LoraConfig | None = None
    conversational: bool | None = None
    answer_suffix: str = ""
    history_looks: int = 20

    def __post_init__(self) -> None:
        if isinstance(self.history_looks, bool) or not isinstance(self.history_looks, int) or self.history_looks < 0:
            raise SettingError(f"history_looks is {self.history_looks!r}: it must be a whole number, 0 for no history")
        for name in ("output_dir", "seed"):
            if name in self.training:
                raise SettingError(f"{name} among the training settings: it is the run's own; leave it out")

    @classmethod
    def presets(cls) -> tuple[str, ...]:
        """Names of the settings that come with the package, for :func:`adapter_settings`."""
        return ("testbed",)

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
