"""Two adapters combined over a range of weights, and what each forgot by that (CoRSA paper, B.1 and Figure 6)."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corsa_plugins.bench.evaluation import Evaluation, Interval, bootstrap_mean, evaluate
from corsa_plugins.bench.merge_adapters.combine import MERGED, combine_adapters
from corsa_plugins.bench.merge_adapters.merge import load_together
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError
from corsa_plugins.files import atomic_write_text
from corsa_plugins.merging.ranges import check_weight
from corsa_plugins.model.placement import Where

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["OVER_WEIGHTS", "MergePoint", "merge_over_weights", "over_weights_table", "save_points"]

OVER_WEIGHTS = "merging.json"
"""The points, in the folder that is written."""


@dataclass(frozen=True)
class MergePoint:
    """Two adapters combined with one pair of weights.

    Attributes:
        method: What made the adapters.
        weights: Of the first and of the second.
        metric: Of which forgetting is the loss: generality, where there are paraphrases, else efficacy.
        first: Forgetting of the first one's requests: the adapter alone minus the merged one, a share.
        second: Likewise of the second one's.
        union: Over the requests of both.
    """

    method: str
    weights: tuple[float, float]
    metric: str
    first: Interval
    second: Interval
    union: Interval


def merge_over_weights(
    adapters: Sequence[str | os.PathLike[str]],
    requests: Sequence[Sequence[EditRequest]],
    weights: Sequence[float],
    *,
    total: float = 1.0,
    method: str = "",
    model: str | None = None,
    device: Where = None,
    dtype: str = "auto",
    **evaluation: Any,
) -> list[MergePoint]:
    """Combine two adapters exactly (w D_1 + (total - w) D_2, D = B A times the scaling) for each w, and ask both sets.

    Args:
        adapters: Folders of two LoRA adapters of one base, trained by themselves.
        requests: What each was trained on.
        weights: Of the first adapter, in units of ``total``: 0.25 gives it a quarter.
        total: Sum of the two weights; 2 is both in full where ``weights`` has 0.5.
        method: What made the adapters, for tables and figures.
        model: The base; by default the one the adapters name.
        device: Where to work; by default a GPU if there is one.
        dtype: Of the base.
        **evaluation: Further arguments of :func:`corsa_plugins.bench.evaluation.evaluate`.

    Returns:
        A point for each weight, in their order.

    Raises:
        SettingError: Not two adapters with requests, no weights or one outside 0 to 1, or as for
            :func:`~corsa_plugins.bench.merge_adapters.merge.load_together`.
        LoadingError, MissingExtraError: Likewise.
    """
    if len(adapters) != 2 or len(requests) != 2 or not all(requests):
        raise SettingError("merging over weights takes two adapters, and the requests of each")
    if not weights or not all(0 <= weight <= 1 for weight in weights):
        raise SettingError(f"the weights are {list(weights)}: give numbers from 0 to 1, the first adapter's parts")
    check_weight(total)
    combined, tokenizer, names = load_together(
        [os.fspath(path) for path in adapters], model, device=device, dtype=dtype
    )

    def ask(active: str, asked: Sequence[EditRequest]) -> Evaluation:
        combined.set_adapter(active)
        return evaluate(combined, tokenizer, asked, label=active, **evaluation)

    alone = [ask(name, asked) for name, asked in zip(names, requests, strict=True)]
    points = []
    for weight in weights:
        pair = (total * weight, total * (1 - weight))
        combine_adapters(combined, names, pair)
        merged = [ask(MERGED, asked) for asked in requests]
        combined.delete_adapter(MERGED)
        points.append(_point(method, pair, alone, merged))
    return points


def _point(
    method: str, pair: tuple[float, float], alone: Sequence[Evaluation], merged: Sequence[Evaluation]
) -> MergePoint:
    has_paraphrases = all(record.paraphrases for evaluation in alone for record in evaluation.records)
    metric = "generality" if has_paraphrases else "efficacy"
    lost = [
        [
            before - after
            for before, after in zip(own.values(metric), now.values(metric), strict=True)
            if before is not None and after is not None
        ]
        for own, now in zip(alone, merged, strict=True)
    ]
    first, second = (bootstrap_mean(values) for values in lost)
    return MergePoint(method, pair, metric, first, second, bootstrap_mean([*lost[0], *lost[1]]))


def save_points(points: Sequence[MergePoint], folder: str | os.PathLike[str]) -> None:
    """Write points to :data:`OVER_WEIGHTS`, whole or not at all; ``corsa report`` draws them.

    Raises:
        OSError: The file cannot be written.
    """
    rows = [
        {**asdict(point), **{name: getattr(point, name)._asdict() for name in ("first", "second", "union")}}
        for point in points
    ]
    atomic_write_text(Path(folder) / OVER_WEIGHTS, json.dumps(rows, indent=2) + "\n")


def over_weights_table(points: Sequence[MergePoint]) -> Table:
    """A row for each pair of weights."""
    from rich.table import Table

    metric = points[0].metric if points else ""
    table = Table(title=f"forgetting by merging: {metric} of the adapter alone minus the merged one's, points, 95 %")
    for heading in ("", "weights", "first", "second", "union"):
        table.add_column(heading, justify="right")
    for point in points:
        cells = (
            f"{100 * each.mean:.1f} [{100 * each.low:.1f}, {100 * each.high:.1f}]"
            for each in (point.first, point.second, point.union)
        )
        table.add_row(point.method, " ".join(f"{weight:g}" for weight in point.weights), *cells)
    return table
