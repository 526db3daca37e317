"""Which requests fight each other, earlier edits, or what the model should keep: known before anything is edited."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from corsa_plugins.alphaedit.conflicts import Conflicts
from corsa_plugins.drawing import new_figure, write_figure

__all__ = ["Diagnosis"]


@dataclass(frozen=True)
class Diagnosis:
    """What an edit of some requests would meet, without making it.

    Attributes:
        conflicts: Of the requests.
        reach: By request, the probability of its target with its v* in place; ``None`` if values were not asked for.
        inconsistency: By request, |r| = |v* - Wk|; ``None`` likewise.
        protected: By layer, the share of the energy of the keys to preserve that is outside the null space, where it
            is known; empty where edits may write anywhere.
    """

    conflicts: Conflicts
    reach: tuple[float, ...] | None = None
    inconsistency: tuple[float, ...] | None = None
    protected: Mapping[int, float] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """One mapping of plain data for each request; where experts are routed to, with those of its key by layer, the
        one that has most of it first."""
        rows = []
        for index, name in enumerate(self.conflicts.names):
            row: dict[str, Any] = {"index": index, "name": name, **vars(self.conflicts.of(index))}
            if experts := self.conflicts.experts(index):
                row["experts"] = {str(layer): list(taken) for layer, taken in experts.items()}
            if self.reach is not None and self.inconsistency is not None:
                row |= {"value_probability": self.reach[index], "inconsistency": self.inconsistency[index]}
            rows.append(row)
        return rows

    def table(self) -> Any:
        """A :class:`rich.table.Table`, the requests of the highest conflict first."""
        from rich.table import Table
        from rich.text import Text

        with_values = self.reach is not None
        with_experts = any(layer.experts for layer in self.conflicts.layers)
        table = Table(title=str(self))
        further = (*(("p(v*)", "|r|") * with_values), *(("layer: experts",) * with_experts))
        for heading in ("request", "K0", "K0 sub.", "Kp", "with", "batch", "with", *further):
            table.add_column(heading)
        for row in sorted(self.rows(), key=lambda row: -_worst(row)):
            cells = [
                row["name"],
                _cell(row["preserved_conflict"]),
                _cell(row["subspace_conflict"]),
                _cell(row["prior_conflict"]),
                row["prior_conflict_with"] or "-",
                _cell(row["batch_conflict"]),
                row["batch_conflict_with"] or "-",
            ]
            if with_values:
                cells += [f"{row['value_probability']:.2f}", f"{row['inconsistency']:.3g}"]
            if with_experts:
                cells.append("; ".join(f"{layer}: {', '.join(map(str, e))}" for layer, e in row["experts"].items()))
            table.add_row(*map(Text, cells))
        return table

    def figure(self, path: str | os.PathLike[str]) -> Path:
        """Draw the conflicts: a histogram each of K0, Kp and batch, and who conflicts with whom. PNG, SVG or PDF.

        Without an ending, ``path`` is a PNG. The file is written whole or not at all.

        Raises:
            SettingError: Figures are not written with this ending.
            OSError: The file cannot be written.
        """
        histograms = self._known_conflicts()
        figure = new_figure(3.2 * (len(histograms) + 1), 3, layout="constrained")
        axes: Any = figure.subplots(1, len(histograms) + 1)
        for axis, (name, values) in zip(axes, histograms.items(), strict=False):
            axis.hist(values, bins=20, range=(0, 1), color="0.45")
            axis.set(title=f"conflict with {name}", xlabel="conflict", ylabel="requests", xlim=(0, 1))
            axis.title.set_fontsize("small")
        highest = torch.cat([torch.stack([layer.batch for layer in self.conflicts.layers]).amax(0), self._prior()], 1)
        image = axes[-1].imshow(highest.numpy(), vmin=0, vmax=1, cmap="Greys", aspect="auto", interpolation="nearest")
        axes[-1].set(title="who with whom", xlabel="requests, then earlier edits", ylabel="request")
        axes[-1].title.set_fontsize("small")
        figure.colorbar(image, ax=axes[-1], label="conflict")
        return write_figure(figure, path)

    def _known_conflicts(self) -> dict[str, list[float]]:
        """Every kind of conflict that there is anything to conflict with in: the figures of the requests."""
        requests = [self.conflicts.of(index) for index in range(len(self.conflicts.names))]
        kinds: dict[str, list[float | None]] = {
            "preserved keys (Eq. 3)": [request.preserved_conflict for request in requests],
            "preserved space (Eq. 6)": [request.subspace_conflict for request in requests],
            "earlier edits": [request.prior_conflict for request in requests],
            "same batch": [request.batch_conflict for request in requests],
        }
        known = {name: [value for value in values if value is not None] for name, values in kinds.items()}
        return {name: values for name, values in known.items() if values}

    def _prior(self) -> Tensor:
        """(N, M), the highest conflict over the layers with each earlier edit, which not every layer need know."""
        names = dict.fromkeys(name for layer in self.conflicts.layers for name in layer.prior_names)
        columns = {name: column for column, name in enumerate(names)}
        highest = torch.zeros(len(self.conflicts.names), len(names), dtype=torch.float64)
        for layer in self.conflicts.layers:
            for conflicts, name in zip(layer.prior.T, layer.prior_names, strict=True):
                column = columns[name]
                highest[:, column] = torch.maximum(highest[:, column], conflicts.double())
        return highest

    def __str__(self) -> str:
        """One line."""
        means = {name: value for name, value in self.conflicts.means().items() if value is not None}
        shown = ", ".join(f"{name.removesuffix('_conflict')} {value:.2f}" for name, value in means.items())
        line = f"mean conflicts of {len(self.conflicts.names)} requests: {shown}"
        if self.protected:
            shares = ", ".join(f"{share:.2f} at layer {layer}" for layer, share in self.protected.items())
            line += f"; protected share of the energy of the keys to preserve: {shares}"
        return line


def _worst(row: dict[str, Any]) -> float:
    return max(row[name] or 0.0 for name in ("subspace_conflict", "prior_conflict", "batch_conflict"))


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
