"""Several LoRA adapters of one base combined into one (papers/corsa.md, B.1), by PEFT's own weighted combination."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from corsa_plugins.bench.evaluation import evaluate
from corsa_plugins.bench.merge_adapters.combine import COMBINATIONS, MERGED, combine_adapters, largest_rank
from corsa_plugins.bench.merge_adapters.forgetting import AdapterForgetting
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError, require
from corsa_plugins.manifest import known_checksums, write_manifest
from corsa_plugins.merging.ranges import check_weight
from corsa_plugins.model.loading import LoadingError, load_model, put_adapters
from corsa_plugins.model.placement import Where
from corsa_plugins.model.stored import ADAPTER_FILES
from corsa_plugins.outputs import check_output, new_directory
from corsa_plugins.parsing import json_value

__all__ = ["MergedAdapters", "WeightedAdapter", "load_together", "merge_adapters", "weighted_adapters"]


logger = logging.getLogger(__name__)

_BESIDE_THE_PRODUCTS = (
    "modules_to_save", "lora_bias", "trainable_token_indices", "target_parameters", "layer_replication", "use_qalora",
    "alora_invocation_tokens", "arrow_config",
)  # fmt: skip
"""Settings of a LoRA adapter with which its effect is more than, or other than, the sum of its products B A."""

NOTHING = 1e-3
"""A combination smaller than this, relative to the adapters it is made of, is warned of."""


@dataclass(frozen=True)
class WeightedAdapter:
    """An adapter, and its part in a merge.

    Attributes:
        path: Its folder.
        weight: What its weight change is multiplied by; finite.
        requests: Those it was trained on, or others that test it; none to measure nothing.

    Raises:
        SettingError: The weight is not finite.
    """

    path: str | os.PathLike[str]
    weight: float
    requests: Sequence[EditRequest] = ()

    def __post_init__(self) -> None:
        check_weight(self.weight)


def weighted_adapters(
    paths: Sequence[str | os.PathLike[str]],
    weights: Sequence[float] = (),
    requests: Sequence[Sequence[EditRequest]] = (),
) -> list[WeightedAdapter]:
    """Adapters, weights and requests that were given side by side.

    Args:
        paths: Folders of adapters.
        weights: One for each; none for equal ones with sum 1.
        requests: One list for each, or none.

    Raises:
        SettingError: Their numbers do not match, or a weight is not finite.
    """
    weights = weights or [1 / max(1, len(paths))] * len(paths)
    if len(weights) != len(paths):
        raise SettingError(f"{len(weights)} weights for {len(paths)} adapters: give one for each")
    if requests and len(requests) != len(paths):
        raise SettingError(f"{len(requests)} request files for {len(paths)} adapters: give one for each, or none")
    each = requests or [()] * len(paths)
    return [WeightedAdapter(*part) for part in zip(paths, weights, each, strict=True)]


@dataclass(frozen=True)
class MergedAdapters:
    """The outcome of :func:`merge_adapters`.

    Attributes:
        path: Folder of the merged adapter.
        rank: The largest rank in it.
        distance: Of its weight change from the weighted sum of the adapters' weight changes, relative to the
            latter, in the Frobenius norm over all layers together.
        forgetting: For each adapter that has requests.
        size: Of its weight change, relative to the adapters' own (:class:`~.combine.Combination`); 0 where it has none.
    """

    path: Path
    rank: int
    distance: float
    forgetting: tuple[AdapterForgetting, ...] = ()
    size: float = 1.0


def merge_adapters(
    adapters: Sequence[WeightedAdapter],
    out: str | os.PathLike[str],
    *,
    model: str | None = None,
    combination: str = "cat",
    density: float | None = None,
    device: Where = None,
    dtype: str = "auto",
    **evaluation: Any,
) -> MergedAdapters:
    """Combine adapters of one base into one adapter, check it against the weights, save it and measure forgetting.

    Args:
        adapters: At least two LoRA adapters with their weights, and with the requests to measure forgetting by.
        out: Folder for the merged adapter; new or empty. It is there whole or not at all.
        model: The base; by default the one the adapters name.
        combination: One of :data:`~corsa_plugins.bench.merge_adapters.combine.COMBINATIONS`.
        density: For the combinations that prune; PEFT's meaning.
        device: Where to work; by default a GPU if there is one.
        dtype: Of the base.
        **evaluation: Further arguments of :func:`corsa_plugins.bench.evaluation.evaluate`.

    Raises:
        SettingError: There are fewer than two adapters, one is given twice, the combination is unknown, the adapters
            are of different bases, or ``cat`` did not give the weighted sum.
        LoadingError: A model or adapter cannot be loaded.
        MissingExtraError: PEFT is not installed.
        OutputError: ``out`` is not empty or cannot be written.
    """
    paths = [os.fspath(adapter.path) for adapter in adapters]
    _check_settings(paths, combination)
    check_output(out)
    combined, tokenizer, names = load_together(paths, model, device=device, dtype=dtype)
    inputs = [
        {"path": path, "weight": adapter.weight, "sha256": known_checksums(path, ADAPTER_FILES)}
        for path, adapter in zip(paths, adapters, strict=True)
    ]
    weights = [adapter.weight for adapter in adapters]
    distance, size = combine_adapters(combined, names, weights, combination=combination, density=density)
    if size < NOTHING:
        logger.warning(
            "%s changes nothing, or next to nothing: its weight change is %.1e of the adapters' own; with the weights "
            "%s by %s they cancel, are scaled to zero or pruned away, or have not been trained",
            os.fspath(out),
            size,
            ", ".join(f"{weight:g}" for weight in weights),
            combination,
        )

    with new_directory(out) as partial:
        combined.save_pretrained(str(partial.parent), selected_adapters=[MERGED])
        saved = partial.parent / MERGED  # PEFT gives each adapter a folder of its name
        if saved != partial:
            partial.rmdir()
            saved.rename(partial)
        write_manifest(partial, combination=combination, density=density, adapters=inputs)
    forgetting = []
    for name, path, adapter in zip(names, paths, adapters, strict=True):
        if not adapter.requests:
            continue
        evaluations = []
        for active, label in ((name, Path(path).name), (MERGED, Path(out).name)):
            combined.set_adapter(active)
            evaluations.append(evaluate(cast(Any, combined), tokenizer, adapter.requests, label=label, **evaluation))
        forgetting.append(AdapterForgetting(*evaluations))
    return MergedAdapters(Path(out), largest_rank(combined), distance, tuple(forgetting), size)


def load_together(
    paths: Sequence[str], model: str | None = None, *, device: Where = None, dtype: str = "auto"
) -> tuple[Any, Any, list[str]]:
    """Adapters on their base, its tokenizer, and what the adapters are called there.

    Args:
        paths: Folders of LoRA adapters.
        model: The base; by default the one the adapters name.
        device: Where to work; by default a GPU if there is one.
        dtype: Of the base.

    Raises:
        SettingError: The adapters are of different bases, or one of them is more than its products B A.
        LoadingError: A model or adapter cannot be loaded.
        MissingExtraError: PEFT is not installed.
    """
    require("peft", "trl", what="combining adapters")
    configs = [_read_config(path) for path in paths]
    loaded, tokenizer = load_model(model or _common_base(paths, configs), device=device, dtype=dtype)
    names = [f"adapter_{index}" for index in range(len(paths))]
    return put_adapters(loaded, dict(zip(names, paths, strict=True)), called="the base"), tokenizer, names


def _check_settings(paths: Sequence[str], combination: str) -> None:
    if len(paths) < 2:
        raise SettingError(f"{len(paths)} adapter: give at least two to merge")
    if len(set(map(os.path.realpath, paths))) < len(paths):
        raise SettingError("an adapter is given twice: give it once, with the sum of its weights")
    if combination not in COMBINATIONS:
        raise SettingError(f"combination is {combination!r}: choose one of {', '.join(COMBINATIONS)}")


def _read_config(path: str) -> dict[str, Any]:
    file = Path(path) / "adapter_config.json"
    try:
        config: dict[str, Any] = json_value(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LoadingError(f"adapter {path}: no {file}; is it the folder of a PEFT adapter?") from None
    except ValueError as error:
        raise LoadingError(f"adapter {path}: {file} is not JSON: {error}") from error
    if config.get("peft_type") != "LORA":
        raise SettingError(f"adapter {path} is of type {config.get('peft_type')}: only LoRA adapters can be combined")
    if config.get("use_dora"):
        raise SettingError(f"adapter {path} uses DoRA, whose weight change is no product that could be added up")
    more = [name for name in _BESIDE_THE_PRODUCTS if config.get(name)]
    if config.get("bias", "none") != "none":
        more.append("bias")
    if more:
        name = more[0]
        raise SettingError(
            f"adapter {path} has {name}={config[name]!r}: what it changes beside its products B A, PEFT's combinations "
            "leave out, so the result would be another model. Merge it into the base, or train without it"
        )
    return config


def _common_base(paths: Sequence[str], configs: Sequence[dict[str, Any]]) -> str:
    bases = [str(config.get("base_model_name_or_path") or "") for config in configs]
    if not all(bases) or len(set(bases)) > 1:
        told = "; ".join(f"{path}: {base or 'none'}" for path, base in zip(paths, bases, strict=True))
        raise SettingError(f"the adapters do not name one base ({told}): give it with --model")
    return bases[0]
