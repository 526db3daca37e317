"""What the weight and the density of a merge may be."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import AfterValidator

from corsa_plugins.errors import SettingError

__all__ = ["Density", "Weight", "check_density", "check_weight"]


def check_weight(weight: float) -> float:
    """``weight``, if it is a finite number.

    Raises:
        SettingError: It is NaN or infinite.
    """
    if not math.isfinite(weight):
        raise SettingError(f"weight is {weight}: it must be a finite number, for instance 0.8")
    return weight


def check_density(density: float) -> float:
    """``density``, if it lies in [0, 1].

    Raises:
        SettingError: It does not, or is NaN.
    """
    if not 0 <= density <= 1:
        raise SettingError(f"density is {density}: it must lie between 0 (keep nothing) and 1 (keep all)")
    return density


Weight = Annotated[float, AfterValidator(check_weight)]
"""A finite number."""

Density = Annotated[float, AfterValidator(check_density)]
"""A number in [0, 1]."""
