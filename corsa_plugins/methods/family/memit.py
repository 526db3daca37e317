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

__all__ = ["MemitSettings", "memit"]


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
    search: SearchSettings | None = field(default=None)
    smoothing: SmoothingSettings | None = field(default=None)


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
