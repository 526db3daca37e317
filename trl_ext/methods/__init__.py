"""LoRA SFT, CoRSA and F-Learning as editing methods of :mod:`corsa_plugins.methods`.

All three train one LoRA adapter through the updates (papers/corsa.md, 2.1: the same parameters phi), with the same
trainer, data and settings, so that a comparison is of the methods.
"""

from trl_ext.methods.f_learning import FLearningMethod, f_learning
from trl_ext.methods.lora import LoraMethod, corsa, lora_sft
from trl_ext.methods.session import AdapterSession
from trl_ext.methods.settings import AdapterSettings, adapter_settings

__all__ = [
    "AdapterSession",
    "AdapterSettings",
    "FLearningMethod",
    "LoraMethod",
    "adapter_settings",
    "corsa",
    "f_learning",
    "lora_sft",
]
