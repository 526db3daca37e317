"""Hyper-parameters as EasyEdit has them, a dataclass per method, and the YAML files that come with the package."""

from __future__ import annotations

import difflib
from pathlib import Path

from corsa_plugins.errors import SettingError
from easyedit_ext.hparams.alphaedit_plus import AlphaEditPlusHyperParams
from easyedit_ext.hparams.base import HparamsError
from easyedit_ext.hparams.family import (
    BLUEHyperParams,
    BLUEPlusHyperParams,
    ENCOREHyperParams,
    KDEHyperParams,
    MEMITPlusHyperParams,
    NASHyperParams,
    PRUNEHyperParams,
    PRUNEPlusHyperParams,
    RECTHyperParams,
    RECTPlusHyperParams,
    SPHEREHyperParams,
)
from easyedit_ext.hparams.locft import LocFTBFHyperParams
from easyedit_ext.hparams.rsft import RSFTHyperParams

__all__ = [
    "AlphaEditPlusHyperParams",
    "BLUEHyperParams",
    "BLUEPlusHyperParams",
    "ENCOREHyperParams",
    "HparamsError",
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
    "hparams_names",
    "hparams_path",
]

_FOLDER = Path(__file__).parent

METHODS = tuple(sorted({path.parent.name for path in _FOLDER.glob("*/*.yaml")}))
"""The values of ``alg_name`` that there are YAML files for, each in the folder of that name."""


def hparams_names(alg_name: str) -> list[str]:
    """The models that a method has a YAML file for.

    Raises:
        SettingError: There is no such method.
    """
    if alg_name not in METHODS:
        raise SettingError(f"alg_name is {alg_name!r}: choose one of {', '.join(METHODS)}")
    return sorted(path.stem for path in (_FOLDER / alg_name).glob("*.yaml"))


def hparams_path(alg_name: str, model: str) -> str:
    """The packaged YAML file of a method for a model, for ``from_hparams``; copy it to change it.

    >>> hparams_path("AlphaEditPlus", "llama3-8b").endswith("AlphaEditPlus/llama3-8b.yaml")
    True

    Raises:
        SettingError: There is no such method, or no file for this model; the message says what there is.
    """
    names = hparams_names(alg_name)
    if model not in names:
        close = difflib.get_close_matches(str(model), names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise SettingError(
            f"no packaged hparams of {alg_name} for {model!r}: {hint}There are {', '.join(names)}; for another model, "
            "copy the nearest one and change model_name and layers"
        )
    return str(_FOLDER / alg_name / f"{model}.yaml")
