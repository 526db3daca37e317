"""KDE (Xu et al. 2025), as far as the AlphaEdit+ paper describes it (B.3).

It is said to maintain "a knowledge cache that stores the representation space of prior edits", and to constrain "each
new edit gradient to lie in the orthogonal space of previously edited knowledge". The cache is the keys of the edits in
force, and the constraint Delta Kp = 0, met exactly, at the least E||Delta k0||^2 otherwise, which is MEMIT's. Its
two-stage training is not described, and is not here: these are closed-form edits under KDE's constraint, and no more
should be read into the name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from corsa_plugins.methods.family.memit import MemitSettings
from corsa_plugins.methods.family.settings import method_of
from corsa_plugins.methods.spec import MethodSpec

__all__ = ["KdeSettings", "kde"]


@dataclass(frozen=True)
class KdeSettings(MemitSettings):
    """As :class:`MemitSettings`.

    Attributes:
        prior_outputs: Kept: updates are orthogonal to the keys of all earlier edits.
    """

    prior_outputs: Literal["weighed", "kept"] = "kept"


kde = MethodSpec(
    name="kde",
    title="KDE's constraint",
    summary="MEMIT with updates orthogonal to the keys of all earlier edits, whose outputs stay exactly as they are",
    source="Xu et al. 2025, as described in AlphaEdit⁺, B.3: the constraint alone, without its two-stage training",
    make=method_of("KDE's constraint", KdeSettings),
    settings=KdeSettings,
    reversible=True,
    rank=36,
    easyedit="easyedit_ext.family:kde",
)
