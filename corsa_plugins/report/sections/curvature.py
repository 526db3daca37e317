"""Extreme eigenvalues of Hessians over an adapter's parameters (CoRSA paper, 2.2 and C.1)."""

from __future__ import annotations

from dataclasses import dataclass

from corsa_plugins.bench.curvature import load_curvature
from corsa_plugins.report.kinds import File, Kind, has
from corsa_plugins.report.render import render
from corsa_plugins.report.sections.section import Section

__all__ = ["CURVATURE", "CurvatureRow"]


@dataclass(frozen=True)
class CurvatureRow:
    """Extreme eigenvalues of a Hessian over an adapter's parameters.

    Attributes:
        label: Of which model.
        of: Of which function, for instance ``"margin"``.
        largest: The eigenvalue of largest magnitude.
        top: The most positive one.
        iterations: That it took.
        converged: Whether it converged within its limit.
    """

    label: str
    of: str
    largest: float
    top: float
    iterations: int
    converged: bool


def _read(file: File) -> tuple[list[CurvatureRow], str]:
    models = load_curvature(file.path)
    rows = []
    for name, functions in models.items():
        label = name if not file.is_labelled else file.label if len(models) == 1 else f"{file.label}: {name}"
        rows += [
            CurvatureRow(label, of, measured.largest, measured.top, measured.iterations, measured.converged)
            for of, measured in functions.items()
        ]
    return rows, ", ".join(models)


CURVATURE = Section(
    name="curvature",
    title="Curvature",
    render=lambda rows: render("curvature.html", rows=rows),
    kinds=(
        Kind(
            name="curvatures",
            fits=has("curvature"),
            read=_read,
            names=("curvature.json",),
            said="curvatures (corsa_plugins.bench.curvature.save_curvature)",
        ),
    ),
)
