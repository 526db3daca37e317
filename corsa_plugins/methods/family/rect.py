"""RECT: Gu et al., "Model Editing Harms General Abilities of Large Language Models: Regularization to the
Rescue" (2024).

Of each update only the elements stay that change most for what is there, by |Delta_ij / W_ij|, the top 40 %. What is
kept, of which weights, and where that is another thing than in the published code:
:mod:`corsa_plugins.alphaedit.restraint`. The update is MEMIT's, as in the AlphaEdit papers' comparisons; and the next
layer's residual is of the weights as they are, with what RECT left of the update.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from corsa_plugins.alphaedit.restraint import RestraintSettings
from corsa_plugins.methods.family.memit import MemitPlusSettings, MemitSettings
from corsa_plugins.methods.family.settings import method_of
from corsa_plugins.methods.spec import MethodSpec

__all__ = ["RectPlusSettings", "RectSettings", "rect", "rect_plus"]

_RULE = RestraintSettings("relative_change", share=0.4)


@dataclass(frozen=True)
class RectSettings(MemitSettings):
    """As :class:`MemitSettings`.

    Attributes:
        restraint: The share of each update that is kept.
    """

    PRESETS: ClassVar[str] = "presets/rect"

    restraint: RestraintSettings | None = field(default=_RULE)


@dataclass(frozen=True)
class RectPlusSettings(MemitPlusSettings):
    """As :class:`MemitPlusSettings`, with RECT's restraint."""

    PRESETS: ClassVar[str] = "presets/rect"

    restraint: RestraintSettings | None = field(default=_RULE)


rect = MethodSpec(
    name="rect",
    title="RECT",
    summary="MEMIT, of each update only the elements that change most for what is there",
    source="Model Editing Harms General Abilities of Large Language Models: Regularization to the Rescue (EMNLP 2024)",
    make=method_of("RECT", RectSettings),
    settings=RectSettings,
    reversible=True,
    rank=34,
    easyedit="easyedit_ext.family:rect",
)

rect_plus = MethodSpec(
    name="rect+",
    title="RECT+",
    summary="RECT with the three parts of AlphaEdit+: the search, the weights of earlier edits, and smoothed targets",
    source="AlphaEdit⁺: Model Editing in the Presence of Conflicting and Inconsistent Knowledge, after C.8",
    make=method_of("RECT+", RectPlusSettings),
    settings=RectPlusSettings,
    reversible=True,
    rank=52,
    easyedit="easyedit_ext.family:rect_plus",
)
