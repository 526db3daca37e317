"""The file of a sweep's points, as ``corsa merge-sweep`` keeps it.

It is JSON Lines: a header on what was swept over, then a line for each point as it is measured. A line that was cut
short is left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from corsa_plugins.bench.merge_sweep.points import SweepError, SweepPoint

__all__ = ["append_point", "open_results", "read_sweep"]


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


def open_results(file: Path, header: Mapping[str, Any]) -> dict[tuple[float, float], SweepPoint]:
    """The points in the file, which gets its header if it is new; the rest of a line that was cut short is removed.

    Raises:
        SweepError: The file holds something else, or a sweep with another header, or it cannot be written.
    """
    if file.exists():
        content = file.read_bytes()
        whole = content.rfind(b"\n") + 1
        earlier, points = read_sweep(file)
        if whole != len(content):
            os.truncate(file, whole)
        if earlier is not None:
            for name, value in header.items():
                if earlier.get(name) != value:
                    raise SweepError(f"{file} holds a sweep with other {name}: name another file, or remove this one")
            return {(point.weight, point.density): point for point in points}
    _write(file, header)
    return {}


def append_point(file: Path, point: SweepPoint) -> None:
    """Add a point to the file, so that it is there whatever happens next.

    Raises:
        SweepError: It cannot be written.
    """
    _write(file, _line(point))


def _line(point: SweepPoint) -> dict[str, Any]:
    """A point as the plain data of its line."""
    return {**vars(point), "right": "".join("1" if value else "0" for value in point.right)}


def _point(weight: Any, density: Any, metrics: Any, retained: Any, right: Any) -> SweepPoint:
    measured = {str(name): float(value) for name, value in dict(metrics).items()}
    return SweepPoint(float(weight), float(density), measured, float(retained), tuple(c == "1" for c in right))


def _write(file: Path, record: Mapping[str, Any]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise SweepError(f"{file} cannot be written: {error}; the points before this one are in it") from error
