"""The other methods of the editor as EasyEdit calls a method: AlphaEdit+'s way, each with fields of its own."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from easyedit_ext.alphaedit_plus import EASYEDIT, apply_alphaedit_plus_to_model
from easyedit_ext.hparams.alphaedit_plus import AlphaEditPlusHyperParams
from easyedit_ext.hparams.base import expect
from easyedit_ext.hparams.family import FAMILY
from easyedit_ext.method import EasyEditMethod

__all__ = [
    "METHODS", "blue", "blue_plus", "encore", "kde", "memit_plus", "nas", "prune", "prune_plus", "rect", "rect_plus",
    "sphere",
]  # fmt: skip


def _method(kind: type[AlphaEditPlusHyperParams]) -> EasyEditMethod:
    @functools.wraps(apply_alphaedit_plus_to_model)
    def apply(model: Any, tok: Any, requests: Any, hparams: Any, *arguments: Any, **options: Any) -> Any:
        expect(hparams, kind)
        return apply_alphaedit_plus_to_model(model, tok, requests, hparams, *arguments, **options)

    apply.__name__ = apply.__qualname__ = f"apply_{kind.METHOD}_to_model"
    return EasyEditMethod(kind.METHOD, apply, EASYEDIT.padding_side)


METHODS: Mapping[str, EasyEditMethod] = {kind.METHOD: _method(kind) for kind in FAMILY}
"""By ``alg_name``."""

blue, blue_plus = METHODS["BLUE"], METHODS["BLUEPlus"]
encore = METHODS["ENCORE"]
kde = METHODS["KDE"]
memit_plus = METHODS["MEMITPlus"]
nas = METHODS["NAS"]
prune, prune_plus = METHODS["PRUNE"], METHODS["PRUNEPlus"]
rect, rect_plus = METHODS["RECT"], METHODS["RECTPlus"]
sphere = METHODS["SPHERE"]
