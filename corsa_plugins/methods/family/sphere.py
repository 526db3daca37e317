"""SPHERE: Liu et al., "Energy-Regularized Sequential Model Editing on Hyperspheres" (ICLR 2026), on AlphaEdit.

    Delta_proj = Delta (I - alpha U U^T)

U are the directions in which the rows of the weights, each of length 1, point most: an update is weakened along them,
so that the rows stay spread over the sphere as they were. U is of the weights from before any edit ("pretrained", in
the paper), where the published code takes the weights as they are: batches do not hang on each other then.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from corsa_plugins.alphaedit.restraint import RestraintSettings
from corsa_plugins.alphaedit.solver.closed_form import SearchSettings
from corsa_plugins.alphaedit.solver.smoothing import SmoothingSettings
from corsa_plugins.methods.family.settings import FamilySettings, method_of
from corsa_plugins.methods.spec import MethodSpec
from corsa_plugins.settings import NonNegative

__all__ = ["SphereSettings", "sphere"]

_RULE = RestraintSettings("principal_directions", energy=0.5, strength=0.5)


@dataclass(frozen=True)
class SphereSettings(FamilySettings):
    """As :class:`~corsa_plugins.alphaedit.AlphaEditSettings`, with the three parts off.

    Attributes:
        restraint: eta (``beta_hse`` of the published code) and alpha.
    """

    PRESETS: ClassVar[str] = "presets/sphere"

    prior_weight: NonNegative = 1.0
    conflict_weights: bool = False
    search: SearchSettings | None = None
    smoothing: SmoothingSettings | None = None
    restraint: RestraintSettings | None = field(default=_RULE)


sphere = MethodSpec(
    name="sphere",
    title="SPHERE",
    summary="AlphaEdit, its updates weakened along the directions in which the weights point most",
    source="Energy-Regularized Sequential Model Editing on Hyperspheres (ICLR 2026)",
    make=method_of("SPHERE", SphereSettings),
    settings=SphereSettings,
    reversible=True,
    rank=42,
    easyedit="easyedit_ext.family:sphere",
)
