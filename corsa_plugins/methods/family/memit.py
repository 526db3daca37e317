"""MEMIT: Meng et al., "Mass-Editing Memory in a Transformer" (ICLR 2023), and the three parts of AlphaEdit+ on it.

    Delta^l = R^l K^T (lambda C^l + K K^T)^-1          Eq. 14, with lambda C for the C_0 of the preserved keys
    R^l = (Z - W^L K) / (L - l + 1)                    Algorithm 1: the layer's share of what is missing

AlphaEdit's penalty is on the norm of the update, in a null space of the preserved keys; MEMIT's is on what the update
does to them, anywhere. Earlier edits are not spared.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from corsa_plugins.alphaedit.settings import Penalty
from corsa_plugins.alphaedit.solver.closed_form import SearchSettings
from corsa_plugins.alphaedit.solver.nullspace import NullSpaceRule
from corsa_plugins.alphaedit.solver.smoothing import SmoothingSettings
from corsa_plugins.methods.family.settings import FamilySettings, method_of
from corsa_plugins.methods.spec import MethodSpec
from corsa_plugins.settings import NonNegative

__all__ = ["MemitPlusSettings", "MemitSettings", "memit", "memit_plus"]


@dataclass(frozen=True)
class MemitSettings(FamilySettings):
    """As :class:`~corsa_plugins.alphaedit.AlphaEditSettings`, with MEMIT's in place of AlphaEdit's.

    Attributes:
        penalty: On what the edit changes of the outputs at the preserved keys.
        null_space: None: edits may write anywhere.
        ridge: lambda, ``mom2_update_weight`` of the published code.
        prior_weight: 0: earlier edits are not spared.
    """

    PRESETS: ClassVar[str] = "presets/memit"

    null_space: NullSpaceRule | None = None
    penalty: Penalty = "outputs"
    ridge: NonNegative = 15000.0
    prior_weight: NonNegative = 0.0
    conflict_weights: bool = False
    search: SearchSettings | None = None
    smoothing: SmoothingSettings | None = None


@dataclass(frozen=True)
class MemitPlusSettings(MemitSettings):
    """As :class:`MemitSettings`, with the three parts of AlphaEdit+: min ||(W + Delta) K1 - V1^t||^2 + lambda
    E||Delta k0||^2 + beta ||Delta Kp Lambda_p^(1/2)||^2 over Delta in the span of P_mod.

    Attributes:
        null_space: What P_mod begins with.
        prior_weight: beta: what the outputs of earlier edits are worth against those of the new ones.
        conflict_weights: Lambda_p.
        search: What is added to P_mod, at a price on top of what MEMIT asks for it.
        smoothing: V1^t.
    """

    null_space: NullSpaceRule | None = field(default_factory=NullSpaceRule)
    prior_weight: NonNegative = 1.0
    conflict_weights: bool = True
    search: SearchSettings | None = field(default_factory=SearchSettings)
    smoothing: SmoothingSettings | None = field(default_factory=SmoothingSettings)


memit = MethodSpec(
    name="memit",
    title="MEMIT",
    summary="closed-form edits that weigh new facts against the covariance of what the model should keep",
    source="Mass-Editing Memory in a Transformer (ICLR 2023), Eq. 14",
    make=method_of("MEMIT", MemitSettings),
    settings=MemitSettings,
    reversible=True,
    rank=32,
)

memit_plus = MethodSpec(
    name="memit+",
    title="MEMIT+",
    summary="MEMIT with the three parts of AlphaEdit+: the search, the weights of earlier edits, and smoothed targets",
    source="AlphaEdit⁺: Model Editing in the Presence of Conflicting and Inconsistent Knowledge, C.8",
    make=method_of("MEMIT+", MemitPlusSettings),
    settings=MemitPlusSettings,
    reversible=True,
    rank=51,
    easyedit="easyedit_ext.family:memit_plus",
)
