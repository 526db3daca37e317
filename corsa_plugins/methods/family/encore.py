"""ENCORE: Gupta et al., "Lifelong Knowledge Editing requires Better Regularization" (EMNLP 2025), on MEMIT.

    Delta = R K^T (lambda_p C + Kp Kp^T + K K^T + lambda_n I)^-1

Beside what an update does to the preserved keys, its Frobenius norm has a price, and earlier edits are spared; and
values are no longer looked for than until the target is the most probable answer in every context, and a few steps
more (most-probable early stopping). In the published code the bare prompt is left out of those contexts, in the belief
that it is the prompt of the KL term; here it is one of them, as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from corsa_plugins.alphaedit import ValueSettings
from corsa_plugins.methods.family.memit import MemitSettings
from corsa_plugins.methods.family.settings import method_of
from corsa_plugins.methods.spec import MethodSpec
from corsa_plugins.settings import NonNegative

__all__ = ["EncoreSettings", "encore"]

_VALUES = ValueSettings(lr=0.5, stop_most_probable=2)


@dataclass(frozen=True)
class EncoreSettings(MemitSettings):
    """As :class:`MemitSettings`.

    Attributes:
        norm_weight: lambda_n / lambda_p: ``update_norm_lambda`` over ``mom2_update_weight`` of the published code.
        prior_weight: 1: earlier edits count as the new ones do.
        values: With ``stop_most_probable``, the published ``prob_cutoff`` without its sign.
    """

    PRESETS: ClassVar[str] = "presets/encore"
    VALUES: ClassVar[Mapping[str, Any]] = {"stop_most_probable": 2}

    norm_weight: NonNegative = 20 / 15000
    prior_weight: NonNegative = 1.0
    values: ValueSettings = field(default_factory=lambda: _VALUES)


encore = MethodSpec(
    name="encore",
    title="ENCORE",
    summary="MEMIT with a price on the norm of updates, and values found no further than to be the most probable",
    source="Lifelong Knowledge Editing requires Better Regularization (EMNLP 2025)",
    make=method_of("ENCORE", EncoreSettings),
    settings=EncoreSettings,
    reversible=True,
    rank=37,
    easyedit="easyedit_ext.family:encore",
)
