"""PRUNE: Ma et al., "Perturbation-Restrained Sequential Model Editing" (ICLR 2025).

The updates of all edits in force together are kept from growing: each of their singular values over the largest of the
original weights, s_0, is brought down to s_0 + log_a(s / s_0). The edits themselves are MEMIT's, as in the AlphaEdit
papers' comparisons. There and in PRUNE's code that is done once, after the last edit; here after every batch, so that
the model that a user has is always the restrained one, and the next batch is made on it. Nothing is made larger, as the
formula would make what is just over an s_0 under 1 / log(a).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from corsa_plugins.alphaedit.restraint import RestraintSettings
from corsa_plugins.methods.family.memit import MemitPlusSettings, MemitSettings
from corsa_plugins.methods.family.settings import method_of
from corsa_plugins.methods.spec import MethodSpec

__all__ = ["PrunePlusSettings", "PruneSettings", "prune", "prune_plus"]

_RULE = RestraintSettings("singular_values", base=1.2)


@dataclass(frozen=True)
class PruneSettings(MemitSettings):
    """As :class:`MemitSettings`.

    Attributes:
        restraint: The base of the logarithm.
    """

    PRESETS: ClassVar[str] = "presets/prune"

    restraint: RestraintSettings | None = field(default=_RULE)


@dataclass(frozen=True)
class PrunePlusSettings(MemitPlusSettings):
    """As :class:`MemitPlusSettings`, with PRUNE's restraint."""

    PRESETS: ClassVar[str] = "presets/prune"

    restraint: RestraintSettings | None = field(default=_RULE)


prune = MethodSpec(
    name="prune",
    title="PRUNE",
    summary="MEMIT, the singular values of all updates together held near the largest of the weights",
    source="Perturbation-Restrained Sequential Model Editing (ICLR 2025)",
    make=method_of("PRUNE", PruneSettings),
    settings=PruneSettings,
    reversible=True,
    rank=35,
    easyedit="easyedit_ext.family:prune",
)

prune_plus = MethodSpec(
    name="prune+",
    title="PRUNE+",
    summary="PRUNE with the three parts of AlphaEdit+: the search, the weights of earlier edits, and smoothed targets",
    source="AlphaEdit⁺: Model Editing in the Presence of Conflicting and Inconsistent Knowledge, C.8",
    make=method_of("PRUNE+", PrunePlusSettings),
    settings=PrunePlusSettings,
    reversible=True,
    rank=53,
    easyedit="easyedit_ext.family:prune_plus",
)
