"""Weight x density on a grid, in memory: what each keeps of the edits and of everything else.

One model is in memory with the base's and the edited model's values of the tensors in which they differ. Every point
is measured as :func:`corsa_plugins.bench.evaluation.evaluate` measures, and appended to a JSON Lines file as it comes;
a stopped sweep goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from corsa_plugins.bench.evaluation import Evaluation, evaluate
from corsa_plugins.data.requests import EditRequest, Probe
from corsa_plugins.errors import SettingError
from corsa_plugins.merging.deltas import EditedTensor, check_density, check_weight, merge_deltas, same_bits
from corsa_plugins.report.sweeps import SweepError, SweepPoint, default_metric, point_line, read_sweep

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["SweepError", "SweepPoint", "best_point", "changed_tensors", "merged_into", "sweep"]

logger = logging.getLogger(__name__)

METRICS = ("efficacy", "generality", "old_retention", "specificity", "portability", "untouched")
"""What is kept of an evaluation, where it has it."""


def sweep(
    base: PreTrainedModel,
    edited: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    untouched: Sequence[Probe | EditRequest],
    *,
    weights: Sequence[float],
    densities: Sequence[float],
    results: str | os.PathLike[str],
    per_row: bool = False,
    prune_vectors: bool = True,
    **evaluation: Any,
) -> list[SweepPoint]:
    """Measure every pair of weight and density, and the base (0, 0) and the edited model (1, 1) beside them.

    Args:
        base: The model before the edits.
        edited: The model after them; its weights are what they were when the sweep ends or is interrupted.
        tokenizer: Of both.
        requests: The edits.
        untouched: Facts that no edit is about, with their answers; the base must answer some of them right.
        weights: Scales to try.
        densities: Densities to try.
        results: JSON Lines file to append to. Points that it has already are not measured again.
        per_row: See :func:`corsa_plugins.merging.deltas.merge_deltas`.
        prune_vectors: Likewise.
        **evaluation: Further arguments of ``evaluate``.

    Returns:
        All points in the file, the base first.

    Raises:
        SweepError: The models are of different shapes or are the same, the base answers no untouched fact right, the
            file holds results of other models, requests or settings, or it cannot be written.
        SettingError: A weight or density is out of range, or there are no requests or untouched facts.
    """
    if not requests or not untouched:
        raise SettingError("a sweep needs both requests and untouched facts: it weighs the ones against the others")
    grid = [(check_weight(weight), check_density(density)) for density in densities for weight in weights]
    changed = changed_tensors(base, edited)
    header = {
        "sweep": 1,
        "requests": _digest(requests),
        "untouched": _digest(untouched),
        "weights_of_models": _digest_tensors(changed),
        "settings": {
            "per_row": per_row,
            "prune_vectors": prune_vectors,
            "max_new_tokens": evaluation.get("max_new_tokens"),
            "chat_template": bool(evaluation.get("chat_template")),
        },
    }
    file = Path(results)
    points = _open(file, header)
    for weight, density in dict.fromkeys([(0.0, 0.0), *grid, (1.0, 1.0)]):
        if (weight, density) in points:
            continue
        logger.info("weight %g, density %g", weight, density)
        with merged_into(edited, changed, weight, density, per_row=per_row, prune_vectors=prune_vectors):
            result = evaluate(
                edited, tokenizer, requests, untouched=untouched, label=f"{weight:g} x {density:g}", **evaluation
            )
        point = _point(weight, density, result, points.get((0.0, 0.0)))
        _append(file, point)
        points[weight, density] = point
    return list(points.values())


def best_point(points: Sequence[SweepPoint], floor: float, metric: str | None = None) -> SweepPoint | None:
    """The point with the most of ``metric`` among those that retain at least ``floor`` of the untouched facts.

    Of equal points the one that retains more is chosen, then the one that changes less.

    Args:
        points: Of a sweep.
        floor: Share of the base's right answers to keep, in [0, 1].
        metric: By default generality where the requests have paraphrases, else efficacy.

    Returns:
        The point, or ``None`` if no merge at all (of a weight and density other than 0) meets the floor.

    Raises:
        SettingError: The floor is outside [0, 1], or the points do not have the metric.
    """
    if not 0 <= floor <= 1:
        raise SettingError(f"floor is {floor}: it must lie between 0 and 1, for instance 0.99")
    metric = metric or default_metric(points)
    if any(metric not in point.metrics for point in points):
        raise SettingError(f"metric is {metric!r}: this sweep measured {', '.join(points[0].metrics)}")
    meeting = [point for point in points if point.weight and point.density and point.retained >= floor]
    return max(
        meeting,
        key=lambda p: (p.metrics[metric], p.metrics["efficacy"], p.retained, -abs(p.weight), -p.density),
        default=None,
    )


def changed_tensors(base: PreTrainedModel, edited: PreTrainedModel) -> dict[str, tuple[Tensor, Tensor]]:
    """The parameters in which two models differ: by name, the base's values and a copy of the edited model's.

    Raises:
        SweepError: The models have different parameters or shapes, or do not differ.
    """
    before, after = dict(base.named_parameters()), dict(edited.named_parameters())
    if before.keys() != after.keys():
        name = min(before.keys() ^ after.keys())
        raise SweepError(f"only one of base and edited model has {name}: they are of different architectures")
    changed = {}
    for name, old in before.items():
        new = after[name]
        if old.shape != new.shape:
            raise SweepError(f"{name} has shape {tuple(new.shape)} in the edited model and {tuple(old.shape)} in base")
        moved = old.detach().to(new.device)
        if not same_bits(moved, new):
            changed[name] = (moved, new.detach().clone())
    if not changed:
        raise SweepError("base and edited model are the same in every tensor: there is no delta to scale or prune")
    return changed


@contextmanager
def merged_into(
    model: PreTrainedModel,
    changed: Mapping[str, tuple[Tensor, Tensor]],
    weight: float,
    density: float,
    *,
    per_row: bool = False,
    prune_vectors: bool = True,
) -> Iterator[None]:
    """``model`` with merged weights; after the block, with those of the edited model."""
    parameters = dict(model.named_parameters())
    try:
        with torch.no_grad():
            for name, (old, new) in changed.items():
                item = EditedTensor(new, weight, density)
                merged = merge_deltas(old, [item], per_row=per_row, prune_vectors=prune_vectors, name=name)
                parameters[name].copy_(merged)
        yield
    finally:
        with torch.no_grad():
            for name, (_, new) in changed.items():
                parameters[name].copy_(new)


def _point(weight: float, density: float, result: Evaluation, base: SweepPoint | None) -> SweepPoint:
    right = tuple(bool(value) for value in result.values("untouched"))
    reference = base.right if base else right
    known = [now for now, before in zip(right, reference, strict=True) if before]
    if not known:
        raise SweepError("the base answers no untouched fact right, so none can be retained: give others")
    summary = result.summary()
    metrics = {name: summary[name].mean for name in METRICS if name in summary}
    return SweepPoint(weight, density, metrics, sum(known) / len(known), right)


def _digest(records: Sequence[Any]) -> str:
    return hashlib.sha256("\n".join(record.model_dump_json() for record in records).encode()).hexdigest()[:16]


def _digest_tensors(changed: Mapping[str, tuple[Tensor, Tensor]]) -> str:
    """Of the head of every tensor: enough to tell two trainings apart, quick enough for large models."""
    digest = hashlib.sha256()
    for name, pair in sorted(changed.items()):
        digest.update(name.encode())
        for tensor in pair:
            head = tensor.reshape(-1)[:65536].to("cpu", torch.float32).contiguous()
            digest.update(head.numpy().tobytes())
    return digest.hexdigest()[:16]


def _open(file: Path, header: Mapping[str, Any]) -> dict[tuple[float, float], SweepPoint]:
    """The points in the file, which gets its header if it is new; the rest of a line that was cut short is removed."""
    if file.exists():
        content = file.read_bytes()
        whole = content.rfind(b"\n") + 1
        found, points = read_sweep(file)
        if whole != len(content):
            os.truncate(file, whole)
        if found is not None:
            for name, value in header.items():
                if found.get(name) != value:
                    raise SweepError(f"{file} holds a sweep with other {name}: name another file, or remove this one")
            return {(point.weight, point.density): point for point in points}
    _write(file, header)
    return {}


def _append(file: Path, point: SweepPoint) -> None:
    _write(file, point_line(point))


def _write(file: Path, record: Mapping[str, Any]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise SweepError(f"{file} cannot be written: {error}; the points before this one are in it") from error
