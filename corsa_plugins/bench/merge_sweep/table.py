"""A sweep as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from corsa_plugins.bench.merge_sweep.points import MEASURED, SweepPoint

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["sweep_table"]


def sweep_table(points: Sequence[SweepPoint], best: SweepPoint | None = None, floor: float | None = None) -> Table:
    """A row per point: base first, the edited model last, the best marked with a star. Shares in percent."""
    from rich.table import Table

    title = f"{len(points)} points" + ("" if floor is None else f"; * best that retains {100 * floor:g} %")
    table = Table(title=title)
    names = [name for name in MEASURED if all(name in point.metrics for point in points)]
    for heading in ("", "weight", "density", *(MEASURED[name] for name in names), "Retained"):
        table.add_column(heading, justify="right")
    for point in sorted(points, key=lambda point: (point.density, point.weight)):
        kind = "base" if not (point.weight and point.density) else "*" if point == best else ""
        kind = kind or ("edited" if point.weight == point.density == 1 else "")
        shares = [*(point.metrics[name] for name in names), point.retained]
        table.add_row(kind, f"{point.weight:g}", f"{point.density:g}", *(f"{100 * share:.1f}" for share in shares))
    return table
