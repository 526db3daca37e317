"""The file of a sweep's points, as ``corsa merge-sweep`` keeps it.

It is a journal (:mod:`corsa_plugins.journal`): a header on what was swept over, then a line for each point as it is
measured.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from corsa_plugins.bench.merge_sweep.points import SweepError, SweepPoint
from corsa_plugins.journal import Journal, JournalError, OtherWorkError, read_journal

__all__ = ["SweepResults", "open_results", "read_sweep"]

_HEAD = "sweep"


def read_sweep(path: str | os.PathLike[str]) -> tuple[Mapping[str, Any] | None, list[SweepPoint]]:
    """The header, ``None`` in an empty file, and the points.

    Raises:
        SweepError: The file holds something else.
        OSError: It cannot be read.
    """
    try:
        found = read_journal(path)
        if found.head is not None and _HEAD not in found.head:
            raise ValueError("the first line is no header of a sweep")
        return found.head, [_point(**line) for line in found.items]
    except (ValueError, TypeError, KeyError) as error:
        raise _no_sweep(path, error) from error


def open_results(file: Path, header: Mapping[str, Any]) -> SweepResults:
    """The results in a file, which is made, with its header, if it is not there.

    Raises:
        SweepError: The file holds something else, or a sweep with another header, or it cannot be written.
    """
    try:
        points = read_sweep(file)[1] if file.exists() else []
        return SweepResults(Journal(file, header), points)
    except SweepError:
        raise
    except OtherWorkError as error:
        if _HEAD in error.differing:
            raise _no_sweep(file, error) from error
        names = ", ".join(error.differing)
        raise SweepError(f"{file} holds a sweep with other {names}: name another file, or remove this one") from None
    except JournalError as error:
        raise _no_sweep(file, error) from error
    except OSError as error:
        raise SweepError(f"{file} cannot be written: {error}") from error


class SweepResults:
    """The file of a sweep, open to add points to; a context manager.

    Attributes:
        points: By weight and density, in the order they were measured in.
    """

    def __init__(self, journal: Journal, points: Sequence[SweepPoint]) -> None:
        self.points = {(point.weight, point.density): point for point in points}
        self._journal = journal

    def append(self, point: SweepPoint) -> None:
        """Add a point, so that it is there whatever happens next.

        Raises:
            SweepError: It cannot be written.
        """
        try:
            self._journal.append(_line(point))
        except OSError as error:
            raise SweepError(
                f"{self._journal.path} cannot be written: {error}; the points before this one are in it"
            ) from error
        self.points[point.weight, point.density] = point

    def __enter__(self) -> SweepResults:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._journal.close()


def _no_sweep(path: str | os.PathLike[str], error: Exception) -> SweepError:
    return SweepError(f"{os.fspath(path)} holds no results of a sweep: {error!r}; name another file")


def _line(point: SweepPoint) -> dict[str, Any]:
    """A point as the plain data of its line."""
    return {**vars(point), "right": "".join("1" if value else "0" for value in point.right)}


def _point(weight: Any, density: Any, metrics: Any, retained: Any, right: Any) -> SweepPoint:
    measured = {str(name): float(value) for name, value in dict(metrics).items()}
    return SweepPoint(float(weight), float(density), measured, float(retained), tuple(c == "1" for c in right))
