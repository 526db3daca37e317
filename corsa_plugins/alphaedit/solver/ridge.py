"""The ridge lambda of Eq. 1: what it may be, its scale-free unit (Lemma 1), and factors of the matrices with it."""

from __future__ import annotations

from math import isfinite

import torch
from torch import Tensor

from corsa_plugins.alphaedit.solver.columns import ColumnsError, check_columns
from corsa_plugins.errors import SettingError

__all__ = ["check_null", "check_ridge", "factorise", "relative_ridge"]


def check_ridge(ridge: float) -> float:
    """``ridge``, if it is a finite number over 0.

    Raises:
        SettingError: It is not.
    """
    if isinstance(ridge, bool) or not isinstance(ridge, int | float) or not isfinite(ridge) or ridge <= 0:
        raise SettingError(f"ridge is {ridge!r}: it must be a number over 0; without it the solution is not unique")
    return float(ridge)


def check_null(n_null: int, d: int) -> int:
    """``n_null``, if it is an integer between 0 and the size ``d`` of a key.

    Raises:
        SettingError: It is not.
    """
    if isinstance(n_null, bool) or not isinstance(n_null, int) or not 0 <= n_null <= d:
        raise SettingError(f"n_null is {n_null!r}: it must be an integer between 0 and {d}, the size of a key")
    return n_null


def relative_ridge(value: float, new: Tensor, n_null: int) -> float:
    """lambda from a scale-free setting: ``value`` times the mean of ||P k||^2 over the new keys.

    A request on its own keeps the share lambda / (lambda + ||P k||^2) of its residual (Lemma 1): about a tenth at 0.1,
    however large the keys of a model are.

    Args:
        value: Over 0.
        new: (d, N), coordinates of the new keys.
        n_null: How many of the rows are in the null space.

    Raises:
        ColumnsError: ``new`` is no matrix of finite numbers.
        SettingError: ``value`` is not over 0, or no key has a part in the null space to measure by.
    """
    check_ridge(value)
    check_columns(new, "new keys")
    check_null(n_null, new.shape[0])
    ridge = value * float(new[:n_null].to(torch.float64).square().sum()) / max(1, new.shape[1])
    if not 0 < ridge < float("inf"):
        raise SettingError(
            "a relative ridge needs new keys with a part in the null space to measure by, and there is none: widen the "
            "null space, or give the ridge in absolute units"
        )
    return ridge


def factorise(matrix: Tensor) -> Tensor:
    """The lower Cholesky factor of a matrix that has the ridge on its diagonal.

    Raises:
        ColumnsError: It is not positive definite in float64: the ridge is lost beside the keys.
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info):
        raise ColumnsError(
            f"the ridge is too small beside keys whose squared norms reach {float(matrix.diagonal().max()):.1e}: "
            "float64 cannot tell the two apart; raise the ridge"
        )
    return factor
