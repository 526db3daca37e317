"""Weight x density on a grid, in memory: what each keeps of the edits and of everything else.

One model is in memory with the base's and the edited model's values of the tensors in which they differ. Every point
is measured as :func:`corsa_plugins.bench.evaluation.evaluate` measures, and appended to a JSON Lines file as it comes;
a stopped sweep goes on where it was.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corsa_plugins.bench.evaluation import Evaluation, evaluate
from corsa_plugins.bench.evaluation.metrics import Shown, select_metrics
from corsa_plugins.bench.merge_sweep.in_memory import changed_tensors, merged_into
from corsa_plugins.bench.merge_sweep.points import SweepError, SweepGrid, SweepPoint
from corsa_plugins.bench.merge_sweep.results import open_results
from corsa_plugins.data.requests import EditRequest, Probe
from corsa_plugins.errors import SettingError
from corsa_plugins.model.identity import tensors_digest, vocabulary_digest
from corsa_plugins.model.placement import named_values

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["sweep"]

logger = logging.getLogger(__name__)


def sweep(
    base: PreTrainedModel,
    edited: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    untouched: Sequence[Probe | EditRequest],
    *,
    grid: SweepGrid,
    results: str | os.PathLike[str],
    **evaluation: Any,
) -> list[SweepPoint]:
    """Measure every pair of weight and density, and the base (0, 0) and the edited model (1, 1) beside them.

    Args:
        base: The model before the edits.
        edited: The model after them; its weights are what they were when the sweep ends or is interrupted.
        tokenizer: Of both.
        requests: The edits.
        untouched: Facts that no edit is about, with their answers; the base must answer some of them right.
        grid: The weights and densities to try.
        results: JSON Lines file to append to. Points that it has already are not measured again.
        **evaluation: Further arguments of ``evaluate``.

    Returns:
        All points in the file, the base first.

    Raises:
        SweepError: The models are of different shapes or are the same, the base answers no untouched fact right, the
            file holds results of other models, requests or settings, or it cannot be written.
        SettingError: There are no requests or no untouched facts.
    """
    if not requests or not untouched:
        raise SettingError("a sweep needs both requests and untouched facts: it weighs the ones against the others")
    changed = changed_tensors(base, edited)
    header = {
        "sweep": 1,
        "requests": _digest(requests),
        "untouched": _digest(untouched),
        "base": tensors_digest(dict(named_values(base))),
        "edited": tensors_digest(dict(named_values(edited))),
        "tokenizer": vocabulary_digest(tokenizer)[:16],
        "settings": {
            "per_row": grid.per_row,
            "prune_vectors": grid.prune_vectors,
            "max_new_tokens": evaluation.get("max_new_tokens"),
            "chat_template": bool(evaluation.get("chat_template")),
        },
    }
    with open_results(Path(results), header) as done:
        for weight, density in grid.pairs():
            if (weight, density) in done.points:
                continue
            logger.info("weight %g, density %g", weight, density)
            with merged_into(edited, changed, weight, density, per_row=grid.per_row, prune_vectors=grid.prune_vectors):
                result = evaluate(
                    edited, tokenizer, requests, untouched=untouched, label=f"{weight:g} x {density:g}", **evaluation
                )
            done.append(_point(weight, density, result, done.points.get((0.0, 0.0))))
        return list(done.points.values())


def _point(weight: float, density: float, result: Evaluation, base: SweepPoint | None) -> SweepPoint:
    right = tuple(bool(value) for value in result.values("untouched"))
    reference = base.right if base else right
    known = [now for now, before in zip(right, reference, strict=True) if before]
    if not known:
        raise SweepError("the base answers no untouched fact right, so none can be retained: give others")
    summary = result.summary()
    compared = select_metrics(of=None, shown=Shown.COMPARED)
    metrics = {metric.name: summary[metric.name].mean for metric in compared if metric.name in summary}
    return SweepPoint(weight, density, metrics, sum(known) / len(known), right)


def _digest(records: Sequence[Any]) -> str:
    return hashlib.sha256("\n".join(record.model_dump_json() for record in records).encode()).hexdigest()[:16]
