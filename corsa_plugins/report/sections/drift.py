"""How far the hidden states of facts that no edit is about have moved (AlphaEdit+ paper, 4.3 and Figure 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from corsa_plugins.bench.protocols.comparison import DRIFT as FILE
from corsa_plugins.report.charts import Series, line_chart
from corsa_plugins.report.kinds import File, Kind, has
from corsa_plugins.report.sections.figures import Figure, figures
from corsa_plugins.report.sections.section import Section

__all__ = ["DRIFT", "Drift"]


@dataclass(frozen=True)
class Drift:
    """What became of hidden states.

    Attributes:
        label: Of which model.
        measured: Of :meth:`corsa_plugins.bench.wild.drift.HeldOut.drift`.
    """

    label: str
    measured: Mapping[str, Any]


def _render(rows: Sequence[Drift]) -> Markup:
    return figures([_by_block(rows), *map(_plane, rows)])


def _by_block(rows: Sequence[Drift]) -> Figure:
    blocks = [(row.label, block) for row in rows for block in row.measured["blocks"]]
    chart = line_chart(
        [
            Series(row.label, [(block["block"], 100 * block["moved"]) for block in row.measured["blocks"]])
            for row in rows
        ],
        title="How far hidden states have moved, by block",
        x_label="block",
        y_label="moved, % of its length",
        span=(0.0,),
    )
    counts = " and ".join(dict.fromkeys(str(row.measured["prompts"]) for row in rows))
    return Figure(
        "By block",
        chart,
        f"The state behind the last token of {counts} prompts that no edit is about: the mean of |h' - h| / |h| after "
        "the last update; lower is better.",
        ("model", "block", "moved, %", "cosine"),
        [(label, block["block"], 100 * block["moved"], block["cosine"]) for label, block in blocks],
    )


def _plane(row: Drift) -> Figure:
    plane = row.measured["plane"]
    chart = line_chart(
        [Series(name, [(point[0], point[-1]) for point in plane[name]], joined=False) for name in ("before", "after")],
        title=f"Hidden states behind the last block, {row.label}",
        x_label="first direction",
        y_label="second direction",
    )
    return Figure(
        row.label,
        chart,
        "Behind the last block, in the two directions in which the states from before differ most, in units of their "
        "spread in the first.",
    )


def _read(file: File) -> tuple[list[Drift], str]:
    drifts = []
    for label, measured in file.data["drift"].items():
        several = len(file.data["drift"]) > 1
        name = label if not file.is_labelled else f"{file.label}: {label}" if several else file.label
        drift = Drift(str(name), measured)
        _render([drift])  # a damaged file is found here, where it is named
        drifts.append(drift)
    return drifts, ", ".join(drift.label for drift in drifts)


DRIFT = Section(
    name="drift",
    title="Drift of hidden states",
    render=_render,
    kinds=(
        Kind(
            name="drift of hidden states",
            fits=has("drift"),
            read=_read,
            names=(FILE,),
            said=f"drift of hidden states ({FILE})",
        ),
    ),
)
