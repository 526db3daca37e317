"""Several LoRA adapters of one base combined into one (papers/corsa.md, B.1), by PEFT's own weighted combination."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel

from corsa_plugins.bench.evaluation import Evaluation, evaluate
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError
from corsa_plugins.merging.deltas import check_weight
from corsa_plugins.model.loading import LoadingError, load_model
from mergekit_ext.output import check_output, disk_errors, new_directory

__all__ = ["COMBINATIONS", "AdapterForgetting", "MergedAdapters", "combine_adapters", "merge_adapters"]

COMBINATIONS = ("cat", "svd", "linear", "ties", "ties_svd", "dare_ties", "dare_linear", "dare_ties_svd",
                "dare_linear_svd", "magnitude_prune", "magnitude_prune_svd")  # fmt: skip
"""PEFT's ways to combine adapters. ``cat`` is exact, and the default: its rank is the sum of all ranks."""

EXACT = 1e-4
"""How far from the weighted sum ``cat`` may be, relative to its norm: rounding in float32 stays far under it."""

MERGED = "merged"


@dataclass(frozen=True)
class AdapterForgetting:
    """What one adapter's requests lost by the merge.

    Attributes:
        own: The evaluation with that adapter alone.
        merged: The same questions to the merged adapter.
    """

    own: Evaluation
    merged: Evaluation


@dataclass(frozen=True)
class MergedAdapters:
    """The outcome of :func:`merge_adapters`.

    Attributes:
        path: Folder of the merged adapter.
        rank: The largest rank in it.
        distance: Of its weight change from the weighted sum of the adapters' weight changes, relative to the
            latter, in the Frobenius norm over all layers together.
        forgetting: For each adapter whose requests were given.
    """

    path: Path
    rank: int
    distance: float
    forgetting: tuple[AdapterForgetting, ...] = ()


def merge_adapters(
    adapters: Sequence[str | os.PathLike[str]],
    weights: Sequence[float],
    out: str | os.PathLike[str],
    *,
    model: str | None = None,
    combination: str = "cat",
    density: float | None = None,
    requests: Sequence[Sequence[EditRequest]] = (),
    device: str | None = None,
    dtype: str = "auto",
    **evaluation: Any,
) -> MergedAdapters:
    """Combine adapters of one base into one adapter, check it against the weights, save it and measure forgetting.

    Args:
        adapters: Folders of at least two LoRA adapters.
        weights: One finite weight per adapter.
        out: Folder for the merged adapter; new or empty. It is there whole or not at all.
        model: The base; by default the one the adapters name.
        combination: One of :data:`COMBINATIONS`.
        density: For the combinations that prune; PEFT's meaning.
        requests: Per adapter, the requests it was trained on (or others that test them); none to measure nothing.
        device: Where to work; by default a GPU if there is one.
        dtype: Of the base.
        **evaluation: Further arguments of :func:`corsa_plugins.bench.evaluation.evaluate`.

    Raises:
        SettingError: Numbers of adapters, weights and request lists do not match, a weight is not finite, the
            combination is unknown, the adapters are of different bases, or ``cat`` did not give the weighted sum.
        LoadingError: A model or adapter cannot be loaded.
        OutputError: ``out`` is not empty or cannot be written.
    """
    paths = [os.fspath(adapter) for adapter in adapters]
    _check_settings(paths, weights, combination, requests)
    check_output(out)
    configs = [_read_config(path) for path in paths]
    loaded, tokenizer = load_model(model or _common_base(paths, configs), device=device, dtype=dtype)
    names = [f"adapter_{index}" for index in range(len(paths))]
    combined = _load(loaded, paths, names)
    distance = combine_adapters(combined, names, weights, combination=combination, density=density)

    with new_directory(out) as partial, disk_errors(out):
        work = partial.parent / "saved"
        combined.save_pretrained(str(work), selected_adapters=[MERGED])
        shutil.move(work / MERGED, partial)
    measured = []
    for name, path, asked in zip(names, paths, requests, strict=False):
        evaluations = []
        for active, label in ((name, Path(path).name), (MERGED, Path(out).name)):
            combined.set_adapter(active)
            evaluations.append(evaluate(cast(Any, combined), tokenizer, asked, label=label, **evaluation))
        measured.append(AdapterForgetting(*evaluations))
    rank = _largest_rank(combined)
    return MergedAdapters(Path(out), rank, distance, tuple(measured))


@torch.no_grad()
def combine_adapters(
    model: PeftModel,
    names: Sequence[str],
    weights: Sequence[float],
    *,
    combination: str = "cat",
    density: float | None = None,
) -> float:
    """Add the adapter ``"merged"`` to ``model``, and compare its weight change with the weighted sum of the others'.

    Returns:
        ``||D_merged - sum_i w_i D_i|| / ||sum_i w_i D_i||`` over all layers together, D being B A times the scaling.

    Raises:
        SettingError: PEFT refuses to combine these adapters, or ``cat``, which is exact, is not.
    """
    settings: dict[str, Any] = {"combination_type": combination} | ({} if density is None else {"density": density})
    inner: Any = model.base_model
    try:
        inner.add_weighted_adapter(list(names), [float(weight) for weight in weights], MERGED, **settings)
    except (ValueError, NotImplementedError) as refusal:
        raise SettingError(f"PEFT cannot combine these adapters by {combination!r}: {refusal}") from refusal
    model.set_adapter(MERGED)
    difference = total = 0.0
    for layer in _lora_layers(model):
        wanted, got = torch.zeros(2, 1, dtype=torch.float64)
        for name, weight in zip(names, weights, strict=True):
            if name in layer.scaling:
                wanted = wanted + weight * layer.get_delta_weight(name).double().cpu()
        if MERGED in layer.scaling:
            got = layer.get_delta_weight(MERGED).double().cpu()
        difference += float((got - wanted).square().sum())
        total += float(wanted.square().sum())
    distance = math.sqrt(difference / total) if total else math.sqrt(difference)
    if combination == "cat" and not distance <= EXACT:
        raise SettingError(
            f"the merged adapter is {distance:.1e} away from the weighted sum of the adapters' weights (relative): an "
            "adapter of theirs is not plain LoRA, or is damaged"
        )
    return distance


def _check_settings(
    paths: Sequence[str], weights: Sequence[float], combination: str, requests: Sequence[Sequence[EditRequest]]
) -> None:
    if len(paths) < 2:
        raise SettingError(f"{len(paths)} adapter: give at least two to merge")
    if len(set(map(os.path.realpath, paths))) < len(paths):
        raise SettingError("an adapter is given twice: give it once, with the sum of its weights")
    if len(weights) != len(paths):
        raise SettingError(f"{len(weights)} weights for {len(paths)} adapters: give one for each")
    for weight in weights:
        check_weight(weight)
    if combination not in COMBINATIONS:
        raise SettingError(f"combination is {combination!r}: choose one of {', '.join(COMBINATIONS)}")
    if requests and len(requests) != len(paths):
        raise SettingError(f"{len(requests)} request files for {len(paths)} adapters: give one for each, or none")


def _read_config(path: str) -> dict[str, Any]:
    file = Path(path) / "adapter_config.json"
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LoadingError(f"adapter {path}: no {file}; is it the folder of a PEFT adapter?") from None
    except ValueError as error:
        raise LoadingError(f"adapter {path}: {file} is not JSON: {error}") from error
    if config.get("peft_type") != "LORA":
        raise SettingError(f"adapter {path} is of type {config.get('peft_type')}: only LoRA adapters can be combined")
    if config.get("use_dora"):
        raise SettingError(f"adapter {path} uses DoRA, whose weight change is no product that could be added up")
    return config


def _common_base(paths: Sequence[str], configs: Sequence[dict[str, Any]]) -> str:
    bases = [str(config.get("base_model_name_or_path") or "") for config in configs]
    if not all(bases) or len(set(bases)) > 1:
        told = "; ".join(f"{path}: {base or 'none'}" for path, base in zip(paths, bases, strict=True))
        raise SettingError(f"the adapters do not name one base ({told}): give it with --model")
    return bases[0]


def _load(base: Any, paths: Sequence[str], names: Sequence[str]) -> PeftModel:
    model: Any = None
    for path, name in zip(paths, names, strict=True):
        try:
            if model is None:
                model = PeftModel.from_pretrained(base, path, adapter_name=name)
            else:
                model.load_adapter(path, adapter_name=name)
        except (OSError, ValueError, RuntimeError) as error:
            raise LoadingError(f"adapter {path} cannot be put on the base: {error}; is it an adapter of it?") from error
    return cast(PeftModel, model.eval())


def _lora_layers(model: PeftModel) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "lora_A") and hasattr(module, "get_delta_weight")]


def _largest_rank(model: PeftModel) -> int:
    return max(layer.r[MERGED] for layer in _lora_layers(model) if MERGED in layer.r)
