"""BLUE: Li et al., "Rethinking Residual Distribution in Locate-then-Edit Model Editing" (2025), on AlphaEdit.

Only the first and the last of the layers are edited. Each has values of its own, the last one's found with the first
one edited, and takes all that is missing to them: nothing is spread over layers that it was not found for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from corsa_plugins.alphaedit import AlphaEditSettings
from corsa_plugins.alphaedit.settings import Residuals
from corsa_plugins.alphaedit.solver.closed_form import SearchSettings
from corsa_plugins.alphaedit.solver.smoothing import SmoothingSettings
from corsa_plugins.methods.family.settings import FamilySettings, method_of
from corsa_plugins.methods.spec import MethodSpec
from corsa_plugins.settings import NonNegative

__all__ = ["BluePlusSettings", "BlueSettings", "blue", "blue_plus"]


@dataclass(frozen=True)
class BlueSettings(FamilySettings):
    """As :class:`~corsa_plugins.alphaedit.AlphaEditSettings`, with the three parts off.

    Attributes:
        layers: The first and the last one.
        residuals: Each layer's own.
    """

    PRESETS: ClassVar[str] = "presets/blue"

    residuals: Residuals = "own"
    prior_weight: NonNegative = 1.0
    conflict_weights: bool = False
    search: SearchSettings | None = None
    smoothing: SmoothingSettings | None = None

    def check(self) -> None:
        super().check()
        if len(self.layers) > 2:
            raise self.refused("layers", f"BLUE edits the first and the last one: {[self.layers[0], self.layers[-1]]}")

    @classmethod
    def layers_of(cls, settings: AlphaEditSettings) -> tuple[int, ...]:
        """The first and the last."""
        return tuple(sorted({settings.layers[0], settings.layers[-1]}))


@dataclass(frozen=True)
class BluePlusSettings(BlueSettings):
    """As :class:`BlueSettings`, with the three parts of AlphaEdit+ and its weight of earlier edits."""

    PRESETS: ClassVar[str] = "presets/blue_plus"

    prior_weight: NonNegative = 100.0
    conflict_weights: bool = True
    search: SearchSettings | None = field(default_factory=SearchSettings)
    smoothing: SmoothingSettings | None = field(default_factory=SmoothingSettings)


blue = MethodSpec(
    name="blue",
    title="BLUE",
    summary="AlphaEdit in the first and the last layer alone, each with values of its own",
    source="Rethinking Residual Distribution in Locate-then-Edit Model Editing (2025)",
    make=method_of("BLUE", BlueSettings),
    settings=BlueSettings,
    reversible=True,
    rank=41,
    easyedit="easyedit_ext.family:blue",
)

blue_plus = MethodSpec(
    name="blue+",
    title="BLUE+",
    summary="BLUE with the three parts of AlphaEdit+: the search, the weights of earlier edits, and smoothed targets",
    source="AlphaEdit⁺: Model Editing in the Presence of Conflicting and Inconsistent Knowledge, C.8",
    make=method_of("BLUE+", BluePlusSettings),
    settings=BluePlusSettings,
    reversible=True,
    rank=54,
    easyedit="easyedit_ext.family:blue_plus",
)
