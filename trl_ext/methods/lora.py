"""LoRA SFT and CoRSA, which is LoRA SFT with DPO, PCGrad and SAM, as methods of a protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.methods.session import AdapterSession
from trl_ext.methods.settings import AdapterSettings

__all__ = ["LORA_SFT", "LoraMethod"]

LORA_SFT: Mapping[str, Any] = {"dpo_weight": 0.0, "sam_rho": 0.0}
"""CoRSA without DPO and without SAM, as fields of ``CoRSAConfig``: supervised fine-tuning of the adapter."""


@dataclass(frozen=True)
class LoraMethod:
    """An adapter that :class:`trl_ext.trainer.CoRSATrainer` trains on, update by update.

    Requests without ``target_old`` get the model's own answer of that moment; those that it answers with ``target_new``
    already are not trained on.

    Attributes:
        name: For tables and labels.
        own: What makes it this method: fields of ``CoRSAConfig`` that have precedence over the shared ones. Without any
            it is CoRSA.
        settings: Shared with the other methods.
    """

    name: str
    own: Mapping[str, Any] = field(default_factory=dict)
    settings: AdapterSettings = field(default_factory=AdapterSettings)

    def describe(self) -> dict[str, Any]:
        """Its settings."""
        return {"method": "LoRA", "name": self.name, "own": dict(self.own), **self.settings.describe()}

    def start(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> AdapterSession:
        """The model without an adapter.

        Raises:
            SettingError: The model has an adapter already.
        """
        return AdapterSession(model, tokenizer, self.settings, self.own, seed)

    def in_form(self, chat_template: bool) -> LoraMethod:
        """With prompts in this form, unless the settings say in which."""
        return replace(self, settings=self.settings.in_form(chat_template))
