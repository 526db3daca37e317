"""Results of a sweep over the weight and the density of a merge, as ``corsa merge-sweep`` keeps them.

The file is JSON Lines: a header on what was swept over, then a line for each point as it is measured. A line that was
cut short is left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corsa_plugins.errors import CorsaError

__all__ = ["SweepError", "SweepPoint", "default_metric", "point_line", "read_sweep"]


class SweepError(CorsaError, ValueError):
    """A file of results that belongs to another sweep or to none, or models that cannot be swept over."""


@dataclass(frozen=True)
class SweepPoint:
    """One point of the grid.

    Attributes:
        weight: What the delta was scaled by.
        density: Share of the delta that was kept.
        metrics: Means by name, as ``evaluate`` defines them.
        retained: Of the untouched facts that the base answers right, the share still answered right.
        right: For each untouched fact, whether it is answered right.
    """

    weight: float
    density: float
    metrics: dict[str, float]
    retained: float
    right: tuple[bool, ...]


def _point(weight: Any, density: Any, metrics: Any, retained: Any, right: Any) -> SweepPoint:
    measured = {str(name): float(value) for name, value in dict(metrics).items()}
    return SweepPoint(float(weight), float(density), measured, float(retained), tuple(c == "1" for c in right))


def default_metric(points: Sequence[SweepPoint]) -> str:
    """What a sweep is read by: generality where the requests have paraphrases, else efficacy."""
    return "generality" if all("generality" in point.metrics for point in points) else "efficacy"


def point_line(point: SweepPoint) -> dict[str, Any]:
    """A point as the plain data of its line."""
    return {**vars(point), "right": "".join("1" if value else "0" for value in point.right)}


def read_sweep(path: str | os.PathLike[str]) -> tuple[Mapping[str, Any] | None, list[SweepPoint]]:
    """The header, ``None`` in an empty file, and the points.

    Raises:
        SweepError: The file holds something else.
        OSError: It cannot be read.
    """
    content = Path(path).read_bytes()
    try:
        header, *lines = [json.loads(line) for line in content.split(b"\n")[:-1]] or [None]
        if header is not None and "sweep" not in header:
            raise ValueError("the first line is no header of a sweep")
        points = [_point(**line) for line in lines]
    except (ValueError, TypeError, KeyError) as error:
        raise SweepError(f"{path} holds no results of a sweep: {error!r}; name another file") from error
    return header, points
