"""AlphaEdit+, R-SFT and others for EasyEdit: ``alg_name: AlphaEditPlus``, ``alg_name: RSFT``, ``alg_name: PRUNE``, ...

In a clone of EasyEdit, or with it on the path::

    import easyedit_ext
    from easyeditor import BaseEditor

    easyedit_ext.register()
    path = easyedit_ext.hparams_path("AlphaEditPlus", "llama3-8b")
    hparams = easyedit_ext.AlphaEditPlusHyperParams.from_hparams(path)
    editor = BaseEditor.from_hparams(hparams)
    metrics, model, _ = editor.edit(prompts=[...], subject=[...], target_new=[...])
    print(easyedit_ext.edit_report(model))

EasyEdit's own ``AlphaEdit`` stays what it is. Importing this package imports neither EasyEdit nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from easyedit_ext.alphaedit_plus import apply_alphaedit_plus_to_model
    from easyedit_ext.hparams import (
        AlphaEditPlusHyperParams,
        BLUEHyperParams,
        BLUEPlusHyperParams,
        ENCOREHyperParams,
        KDEHyperParams,
        LocFTBFHyperParams,
        MEMITPlusHyperParams,
        NASHyperParams,
        PRUNEHyperParams,
        PRUNEPlusHyperParams,
        RECTHyperParams,
        RECTPlusHyperParams,
        RSFTHyperParams,
        SPHEREHyperParams,
        hparams_path,
    )
    from easyedit_ext.locft import apply_locft_bf_to_model
    from easyedit_ext.records import edit_report, reset
    from easyedit_ext.registration import register
    from easyedit_ext.rsft import apply_rsft_to_model
    from easyedit_ext.state import load, save

_HOMES = {
    "AlphaEditPlusHyperParams": "hparams",
    "BLUEHyperParams": "hparams",
    "BLUEPlusHyperParams": "hparams",
    "ENCOREHyperParams": "hparams",
    "KDEHyperParams": "hparams",
    "LocFTBFHyperParams": "hparams",
    "MEMITPlusHyperParams": "hparams",
    "NASHyperParams": "hparams",
    "PRUNEHyperParams": "hparams",
    "PRUNEPlusHyperParams": "hparams",
    "RECTHyperParams": "hparams",
    "RECTPlusHyperParams": "hparams",
    "SPHEREHyperParams": "hparams",
    "RSFTHyperParams": "hparams",
    "apply_alphaedit_plus_to_model": "alphaedit_plus",
    "apply_locft_bf_to_model": "locft",
    "apply_rsft_to_model": "rsft",
    "edit_report": "records",
    "hparams_path": "hparams",
    "load": "state",
    "register": "registration",
    "reset": "records",
    "save": "state",
}

__all__ = [
    "AlphaEditPlusHyperParams",
    "BLUEHyperParams",
    "BLUEPlusHyperParams",
    "ENCOREHyperParams",
    "KDEHyperParams",
    "LocFTBFHyperParams",
    "MEMITPlusHyperParams",
    "NASHyperParams",
    "PRUNEHyperParams",
    "PRUNEPlusHyperParams",
    "RECTHyperParams",
    "RECTPlusHyperParams",
    "RSFTHyperParams",
    "SPHEREHyperParams",
    "apply_alphaedit_plus_to_model",
    "apply_locft_bf_to_model",
    "apply_rsft_to_model",
    "edit_report",
    "hparams_path",
    "load",
    "register",
    "reset",
    "save",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"easyedit_ext.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
