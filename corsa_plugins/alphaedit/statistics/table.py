"""Collected statistics as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from corsa_plugins.alphaedit.solver.nullspace import NullSpaceRule
from corsa_plugins.alphaedit.statistics.statistics import KeyStatistics

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["statistics_table"]


def statistics_table(statistics: KeyStatistics) -> Table:
    """A row per layer: width, tokens, keys kept, and how much of the key space hardly any key reaches."""
    from rich.table import Table

    threshold = NullSpaceRule()
    headings = (
        "layer", "width", "tokens", "keys kept", f"eigenvectors under {threshold.value:g}, %", "their energy, %",
        "smallest 70 %: under", "their energy, %",
    )  # fmt: skip
    table = Table(title=f"keys of {statistics.fingerprint or 'an unknown model'}")
    for heading in headings:
        table.add_column(heading, justify="right")
    for layer in statistics.layers:
        values, sample = statistics.eigenvalues(layer), statistics.sample(layer)
        under, share = threshold.count(values), NullSpaceRule("share", 0.7).count(values)
        total = max(float(values.sum()), 1e-300)
        cells = (
            layer, statistics.width(layer), f"{statistics.count(layer):,}", 0 if sample is None else sample.shape[1],
            f"{100 * under / len(values):.1f}", f"{100 * float(values[:under].sum()) / total:.2g}",
            f"{float(values[min(share, len(values) - 1)]):.2g}", f"{100 * float(values[:share].sum()) / total:.2g}",
        )  # fmt: skip
        table.add_row(*map(str, cells))
    return table
