"""NAS: Liu et al., "Norm Anchors Make Model Edits Last" (arXiv:2602.02543), on AlphaEdit, as its published code has it.

Every value vector is brought to the norm that the original model's have, so that values and weights do not make each
other longer over a sequence of edits: :mod:`corsa_plugins.alphaedit.values.anchor` has the equations, and says which
requests that norm is of here. All else is AlphaEdit's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from corsa_plugins.alphaedit.solver.closed_form import SearchSettings
from corsa_plugins.alphaedit.solver.smoothing import SmoothingSettings
from corsa_plugins.alphaedit.values.anchor import NormAnchorSettings
from corsa_plugins.methods.family.settings import FamilySettings, method_of
from corsa_plugins.methods.spec import MethodSpec
from corsa_plugins.settings import NonNegative

__all__ = ["NasSettings", "nas"]


@dataclass(frozen=True)
class NasSettings(FamilySettings):
    """As :class:`~corsa_plugins.alphaedit.AlphaEditSettings`, with the three parts off.

    Attributes:
        norm_anchor: nu, and which values are left out.
    """

    PRESETS: ClassVar[str] = "presets/nas"

    prior_weight: NonNegative = 1.0
    conflict_weights: bool = False
    search: SearchSettings | None = None
    smoothing: SmoothingSettings | None = None
    norm_anchor: NormAnchorSettings | None = field(default_factory=NormAnchorSettings)


nas = MethodSpec(
    name="nas",
    title="NAS",
    summary="AlphaEdit, its value vectors brought to the norm that the original model's have",
    source="Norm Anchors Make Model Edits Last (arXiv 2602.02543)",
    make=method_of("NAS", NasSettings),
    settings=NasSettings,
    reversible=True,
    rank=43,
    easyedit="easyedit_ext.family:nas",
)
