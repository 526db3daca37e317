"""ROME: Meng et al., "Locating and Editing Factual Associations in GPT" (NeurIPS 2022), and EMMET for several at once.

    Delta = r (C^-1 k)^T / (k^T C^-1 k),   r = v* - W k                 Eq. 2: one layer, one fact, rank one
    Delta = R (K^T C^-1 K)^-1 K^T C^-1                                  EMMET: as many facts as there are, at once

Both take every target exactly, at the least change of the outputs at the preserved keys. ROME edits one fact after
another, each on the model that the others have left; its values are those of the FFN's output, held to four times its
norm. In the published code k is the mean over contexts in C^-1 k, and that of the bare prompt beside it; here it is the
mean in both, as in the paper, which is the same where there are no contexts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from corsa_plugins.alphaedit import AlphaEditSettings, ValueSettings
from corsa_plugins.methods.family.memit import MemitSettings
from corsa_plugins.methods.family.settings import method_of
from corsa_plugins.methods.spec import MethodSpec
from corsa_plugins.settings import NonNegative

__all__ = ["EmmetSettings", "RomeSettings", "emmet", "rome"]

_VALUES = ValueSettings(steps=20, lr=0.5, clamp=4.0, at="ffn")


@dataclass(frozen=True)
class EmmetSettings(MemitSettings):
    """As :class:`MemitSettings`, with every target met exactly.

    Attributes:
        ridge: 0: there is none.
    """

    PRESETS: ClassVar[str] = "presets/emmet"

    ridge: NonNegative = 0.0


@dataclass(frozen=True)
class RomeSettings(EmmetSettings):
    """As :class:`EmmetSettings`, one fact after the other, in one layer.

    Attributes:
        one_at_a_time: Each fact on the model that the others have left.
        values: Of the FFN's output; the published values.
    """

    PRESETS: ClassVar[str] = "presets/rome"
    VALUES: ClassVar[Mapping[str, Any]] = {"at": "ffn", "stop_most_probable": 0}

    one_at_a_time: bool = True
    values: ValueSettings = field(default_factory=lambda: _VALUES)

    def check(self) -> None:
        super().check()
        if len(self.layers) != 1:
            raise self.refused("layers", "ROME edits one layer: name one, such as [17] for GPT-2 XL")

    @classmethod
    def layers_of(cls, settings: AlphaEditSettings) -> tuple[int, ...]:
        """The last one, where the values of those are."""
        return settings.layers[-1:]


rome = MethodSpec(
    name="rome",
    title="ROME",
    summary="one fact after the other written exactly into one layer, at the least change of what it should keep",
    source="Locating and Editing Factual Associations in GPT (NeurIPS 2022), Eq. 2",
    make=method_of("ROME", RomeSettings),
    settings=RomeSettings,
    reversible=True,
    rank=31,
)

emmet = MethodSpec(
    name="emmet",
    title="EMMET",
    summary="ROME for several facts at once: every target exactly, at the least change of what the model should keep",
    source="A Unified Framework for Model Editing (2024)",
    make=method_of("EMMET", EmmetSettings),
    settings=EmmetSettings,
    reversible=True,
    rank=33,
)
