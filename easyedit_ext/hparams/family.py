"""Hyper-parameters of the other methods of the editor in EasyEdit, as far as EasyEdit has not got them itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from easyedit_ext.hparams.alphaedit_plus import AlphaEditPlusHyperParams

__all__ = [
    "FAMILY", "BLUEHyperParams", "BLUEPlusHyperParams", "ENCOREHyperParams", "KDEHyperParams", "MEMITPlusHyperParams",
    "NASHyperParams", "PRUNEHyperParams", "PRUNEPlusHyperParams", "RECTHyperParams", "RECTPlusHyperParams",
    "SPHEREHyperParams",
]  # fmt: skip

_FAMILY = "corsa_plugins.methods.family"
_ON_MEMIT = {**AlphaEditPlusHyperParams.FIELDS, "ridge": "mom2_update_weight"}
_ANYWHERE = {own: field for own, field in _ON_MEMIT.items() if not own.startswith("null_space.")}


@dataclass(kw_only=True)
class MEMITPlusHyperParams(AlphaEditPlusHyperParams):
    """MEMIT with the three parts of AlphaEdit+. A YAML file of EasyEdit's MEMIT loads after changing ``alg_name``.

    Attributes:
        mom2_update_weight: lambda, of the covariance; ``L2`` is not read.
        prior_weight: beta.
    """

    METHOD: ClassVar[str] = "MEMITPlus"
    SETTINGS: ClassVar[str] = f"{_FAMILY}.memit:MemitPlusSettings"
    FIELDS: ClassVar[Mapping[str, str]] = _ON_MEMIT

    prior_weight: float = 1.0


@dataclass(kw_only=True)
class RECTPlusHyperParams(MEMITPlusHyperParams):
    """RECT with the three parts of AlphaEdit+.

    Attributes:
        rect_share: Of the elements of an update that is kept.
    """

    METHOD: ClassVar[str] = "RECTPlus"
    SETTINGS: ClassVar[str] = f"{_FAMILY}.rect:RectPlusSettings"
    FIELDS: ClassVar[Mapping[str, str]] = {**_ON_MEMIT, "restraint.share": "rect_share"}
    FIXED: ClassVar[Mapping[str, Any]] = {"restraint.rule": "relative_change"}

    rect_share: float = 0.4


@dataclass(kw_only=True)
class PRUNEPlusHyperParams(MEMITPlusHyperParams):
    """PRUNE with the three parts of AlphaEdit+.

    Attributes:
        prune_base: Of the logarithm that singular values are brought down by.
    """

    METHOD: ClassVar[str] = "PRUNEPlus"
    SETTINGS: ClassVar[str] = f"{_FAMILY}.prune:PrunePlusSettings"
    FIELDS: ClassVar[Mapping[str, str]] = {**_ON_MEMIT, "restraint.base": "prune_base"}
    FIXED: ClassVar[Mapping[str, Any]] = {"restraint.rule": "singular_values"}

    prune_base: float = 1.2


@dataclass(kw_only=True)
class RECTHyperParams(RECTPlusHyperParams):
    """RECT on MEMIT. A YAML file of EasyEdit's MEMIT loads after changing ``alg_name``."""

    METHOD: ClassVar[str] = "RECT"
    SETTINGS: ClassVar[str] = f"{_FAMILY}.rect:RectSettings"
    FIELDS: ClassVar[Mapping[str, str]] = {**_ANYWHERE, "restraint.share": "rect_share"}

    prior_weight: float = 0.0
    conflict_weights: bool = False
    search: bool = False
    smoothing: bool = False


@dataclass(kw_only=True)
class PRUNEHyperParams(PRUNEPlusHyperParams):
    """PRUNE on MEMIT. A YAML file of EasyEdit's MEMIT loads after changing ``alg_name``."""

    METHOD: ClassVar[str] = "PRUNE"
    SETTINGS: ClassVar[str] = f"{_FAMILY}.prune:PruneSettings"
    FIELDS: ClassVar[Mapping[str, str]] = {**_ANYWHERE, "restraint.base": "prune_base"}

    prior_weight: float = 0.0
    conflict_weights: bool = False
    search: bool = False
    smoothing: bool = False


@dataclass(kw_only=True)
class ENCOREHyperParams(MEMITPlusHyperParams):
    """ENCORE on MEMIT. A YAML file of EasyEdit's MEMIT loads after changing ``alg_name``.

    Attributes:
        norm_weight: lambda_n / lambda_p: the published ``update_norm_lambda`` over ``mom2_update_weight``.
        stop_most_probable: The published ``prob_cutoff`` without its sign.
    """

    METHOD: ClassVar[str] = "ENCORE"
    SETTINGS: ClassVar[str] = f"{_FAMILY}.encore:EncoreSettings"
    FIELDS: ClassVar[Mapping[str, str]] = {
        **_ANYWHERE,
        "norm_weight": "norm_weight",
        "values.stop_most_probable": "stop_most_probable",
    }

    norm_weight: float = 20 / 15000
    stop_most_probable: int = 2
    conflict_weights: bool = False
    search: bool = False
    smoothing: bool = False


@dataclass(kw_only=True)
class KDEHyperParams(MEMITPlusHyperParams):
    """KDE's constraint on MEMIT, without its two-stage training. A YAML file of EasyEdit's MEMIT loads after changing
    ``alg_name``."""

    METHOD: ClassVar[str] = "KDE"
    SETTINGS: ClassVar[str] = f"{_FAMILY}.kde:KdeSettings"
    FIELDS: ClassVar[Mapping[str, str]] = _ANYWHERE

    prior_weight: float = 0.0
    conflict_weights: bool = False
    search: bool = False
    smoothing: bool = False


@dataclass(kw_only=True)
class BLUEPlusHyperParams(AlphaEditPlusHyperParams):
    """BLUE on AlphaEdit+: the first and the last layer, each with values of its own."""

    METHOD: ClassVar[str] = "BLUEPlus"
    SETTINGS: ClassVar[str] = f"{_FAMILY}.blue:BluePlusSettings"


@dataclass(kw_only=True)
class BLUEHyperParams(BLUEPlusHyperParams):
    """BLUE on AlphaEdit."""

    METHOD: ClassVar[str] = "BLUE"
    SETTINGS: ClassVar[str] = f"{_FAMILY}.blue:BlueSettings"

    prior_weight: float = 1.0
    conflict_weights: bool = False
    search: bool = False
    smoothing: bool = False


@dataclass(kw_only=True)
class NASHyperParams(AlphaEditPlusHyperParams):
    """NAS on AlphaEdit. A YAML file of EasyEdit's AlphaEdit loads after changing ``alg_name``.

    Attributes:
        nas_norm: The reference norm. ``None``: the mean norm of the value vectors of the first requests that are edited
            together, ``batch_size`` of them.
        nas_drop: The share of the largest that this mean leaves out.
        nas_skip_over: A value vector longer than so many times the norm is left out.
    """

    METHOD: ClassVar[str] = "NAS"
    SETTINGS: ClassVar[str] = f"{_FAMILY}.nas:NasSettings"
    FIELDS: ClassVar[Mapping[str, str]] = {
        **AlphaEditPlusHyperParams.FIELDS,
        "norm_anchor.norm": "nas_norm",
        "norm_anchor.drop": "nas_drop",
        "norm_anchor.skip_over": "nas_skip_over",
    }

    nas_norm: float | None = None
    nas_drop: float = 0.05
    nas_skip_over: float = 2.0
    prior_weight: float = 1.0
    conflict_weights: bool = False
    search: bool = False
    smoothing: bool = False


@dataclass(kw_only=True)
class SPHEREHyperParams(AlphaEditPlusHyperParams):
    """SPHERE on AlphaEdit. A YAML file of EasyEdit's AlphaEdit loads after changing ``alg_name``.

    Attributes:
        sphere_energy: eta, ``beta_hse`` of the published code: how many directions are the main ones.
        sphere_strength: alpha: what is taken away of an update along them.
    """

    METHOD: ClassVar[str] = "SPHERE"
    SETTINGS: ClassVar[str] = f"{_FAMILY}.sphere:SphereSettings"
    FIELDS: ClassVar[Mapping[str, str]] = {
        **AlphaEditPlusHyperParams.FIELDS,
        "restraint.energy": "sphere_energy",
        "restraint.strength": "sphere_strength",
    }
    FIXED: ClassVar[Mapping[str, Any]] = {"restraint.rule": "principal_directions"}

    sphere_energy: float = 0.5
    sphere_strength: float = 0.5
    prior_weight: float = 1.0
    conflict_weights: bool = False
    search: bool = False
    smoothing: bool = False


FAMILY: tuple[type[AlphaEditPlusHyperParams], ...] = (
    BLUEHyperParams, BLUEPlusHyperParams, ENCOREHyperParams, KDEHyperParams, MEMITPlusHyperParams, NASHyperParams,
    PRUNEHyperParams, PRUNEPlusHyperParams, RECTHyperParams, RECTPlusHyperParams, SPHEREHyperParams,
)  # fmt: skip
"""All of them."""
