"""How EasyEdit calls a method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["EasyEditMethod"]


@dataclass(frozen=True)
class EasyEditMethod:
    """What EasyEdit needs to know of a method; the method's spec names where it is
    (:attr:`corsa_plugins.methods.spec.MethodSpec.easyedit`).

    Attributes:
        alg_name: By which it is chosen in EasyEdit's YAML files.
        apply: What EasyEdit calls: ``apply(model, tok, requests, hparams, copy, return_orig_weights,
            keep_original_weight, **kwargs)``, which returns the model and original weights by parameter name.
        padding_side: That ``BaseEditor`` sets for it, as EasyEdit's own lists have it for methods of its kind.
    """

    alg_name: str
    apply: Callable[..., Any]
    padding_side: Literal["left", "right"]
