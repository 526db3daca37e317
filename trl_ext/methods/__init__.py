"""LoRA SFT, CoRSA and F-Learning as editing methods of :mod:`corsa_plugins.methods`.

All three train one LoRA adapter through the updates (papers/corsa.md, 2.1: the same parameters phi), with the same
trainer, data and settings, so that a comparison is of the methods. What is said of them here needs no TRL; it is
imported when a method is made.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from corsa_plugins.methods.spec import MethodSpec

if TYPE_CHECKING:
    from trl_ext.methods.flearning import FLearningMethod
    from trl_ext.methods.lora import LoraMethod
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

_HOMES = {
    "AdapterSession": "session",
    "AdapterSettings": "settings",
    "FLearningMethod": "flearning",
    "LoraMethod": "lora",
    "adapter_settings": "settings",
}
_SETTINGS = "trl_ext.methods.settings:AdapterSettings"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def _lora_sft(settings: AdapterSettings | str | None = None) -> LoraMethod:
    from trl_ext.methods.lora import LORA_SFT, LoraMethod
    from trl_ext.methods.settings import adapter_settings

    return LoraMethod(lora_sft.title, LORA_SFT, adapter_settings(settings))


def _corsa(settings: AdapterSettings | str | None = None) -> LoraMethod:
    from trl_ext.methods.lora import LoraMethod
    from trl_ext.methods.settings import adapter_settings

    return LoraMethod(corsa.title, settings=adapter_settings(settings))


def _f_learning(
    settings: AdapterSettings | str | None = None,
    forgetting_rate: float | None = None,
    forgetting: Mapping[str, Any] | None = None,
) -> FLearningMethod:
    from trl_ext.methods.flearning import FORGETTING_RATE, FLearningMethod
    from trl_ext.methods.settings import adapter_settings

    rate = FORGETTING_RATE if forgetting_rate is None else forgetting_rate
    return FLearningMethod(adapter_settings(settings), rate, forgetting or {})


lora_sft = MethodSpec(
    name="lora-sft",
    title="LoRA SFT",
    summary="supervised fine-tuning of a LoRA adapter: CoRSA without DPO and without SAM",
    source="the baseline of CoRSA (arXiv 2602.03696)",
    make=_lora_sft,
    settings=_SETTINGS,
    changes=("adapter",),
    extra="trl",
    rank=10,
    demo=True,
)

f_learning = MethodSpec(
    name="f-learning",
    title="F-Learning",
    summary="unlearns the old answers from the weights, then learns the new ones on a LoRA adapter",
    source="Forgetting before Learning (Ni et al., ACL 2024)",
    make=_f_learning,
    settings=_SETTINGS,
    changes=("weights", "adapter"),
    extra="trl",
    rank=20,
)

corsa = MethodSpec(
    name="corsa",
    title="CoRSA",
    summary="a LoRA adapter trained by SFT and DPO with sharpness-aware steps, their conflicts projected out",
    source="Conflict-Resolving and Sharpness-Aware Minimization (arXiv 2602.03696), Algorithm 1",
    make=_corsa,
    settings=_SETTINGS,
    changes=("adapter",),
    extra="trl",
    rank=30,
    demo=True,
)
