"""Curvatures as a file."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from corsa_plugins.bench.curvature.lanczos import Curvature, CurvatureError
from corsa_plugins.errors import DamagedError
from corsa_plugins.manifest import versions
from corsa_plugins.sealed import read_sealed, write_sealed

__all__ = ["load_curvature", "save_curvature"]


def save_curvature(path: str | os.PathLike[str], curvatures: Mapping[str, Mapping[str, Curvature]]) -> Path:
    """Write curvatures to a JSON file, whole or not at all, for :func:`load_curvature`.

    Args:
        path: For instance ``runs/curvature.json``; ``corsa report`` reads it.
        curvatures: By model (``"LoRA SFT"``, ``"CoRSA"``), what
            :func:`~corsa_plugins.bench.curvature.measure.curvature` gave for it.

    Raises:
        OSError: The file cannot be written.
    """
    plain = {
        label: {of: _plain(measured) for of, measured in functions.items()} for label, functions in curvatures.items()
    }
    return write_sealed(path, {"curvature": plain, "versions": versions()})


def _plain(curvature: Curvature) -> dict[str, Any]:
    plain = asdict(curvature)
    return {**plain, "value": plain["value"] if math.isfinite(plain["value"]) else None}  # strict JSON has no NaN


def load_curvature(path: str | os.PathLike[str]) -> dict[str, dict[str, Curvature]]:
    """What :func:`save_curvature` wrote: curvatures by model and function.

    Raises:
        CurvatureError: The file holds something else, or is not what was written.
        OSError: It cannot be read.
    """
    try:
        saved = read_sealed(path)["curvature"]
        return {
            str(label): {
                str(of): Curvature(
                    **{name: float(saved_of[name]) for name in ("largest", "top", "bottom", "residual")},
                    iterations=int(saved_of["iterations"]),
                    converged=bool(saved_of["converged"]),
                    value=math.nan if saved_of["value"] is None else float(saved_of["value"]),
                    about=dict(saved_of.get("about", {})),
                )
                for of, saved_of in functions.items()
            }
            for label, functions in saved.items()
        }
    except DamagedError as error:
        raise CurvatureError(str(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CurvatureError(f"{path} holds no curvatures: {error!r}") from error
