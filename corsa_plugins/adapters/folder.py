"""The folder of a LoRA adapter, as PEFT, vLLM and llama.cpp's converter read it.

``adapter_config.json`` and ``adapter_model.safetensors``; one rank for all modules, smaller changes being padded by
zeros, and alpha equal to it, so that nothing is scaled: servers differ in what they make of ranks and scales by module
(older vLLM and llama.cpp's ``convert_lora_to_gguf.py`` read the one rank and the one alpha alone). Beside them
``corsa.json``, which no server reads: of which model the adapter is, by its weights, and which edits are in it; and
``manifest.json``, by which damage is noticed.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from corsa_plugins.adapters.low_rank import LowRank
from corsa_plugins.adapters.routed import RoutedLowRank
from corsa_plugins.errors import CorsaError, SettingError
from corsa_plugins.manifest import DamagedError, check_folder, write_manifest
from corsa_plugins.model.bases import ABOUT
from corsa_plugins.outputs import new_directory
from corsa_plugins.parsing import json_value
from corsa_plugins.paths import user_path
from corsa_plugins.patterns import check_pattern

__all__ = ["DTYPES", "AdapterError", "LoraAdapter", "read_adapter", "write_adapter"]

DTYPES = ("float32", "bfloat16", "float16")
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"

_PREFIX = "base_model.model."
_REFUSED = {
    "modules_to_save": "whole modules, which are no change of a weight by a product",
    "use_dora": "DoRA, whose change depends on the weight",
    "lora_bias": "biases",
    "trainable_token_indices": "trained tokens",
    "alora_invocation_tokens": "an activation by tokens (aLoRA)",
    "layer_replication": "repeated layers",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal factors",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "arrow_config": "Arrow's routing",
}
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq")


class AdapterError(CorsaError, ValueError):
    """An adapter that is damaged, holds what no product of two factors can, or is of another model."""


@dataclass(frozen=True)
class LoraAdapter:
    """Changes of a model's linear maps as products, and of routed experts as a product for each.

    Attributes:
        base: The model they go onto: a name on the Hub, or a path.
        updates: By the name of the module; of routed experts by that of their parameter.
        transposed: Whether the modules store their weights as (d_in, d_out), as GPT-2's do.
        about: What ``corsa.json`` says; empty for an adapter of another tool.
        beside_experts: Whether the model has fused experts. PEFT takes target modules for experts of such a model where
            they have the names that these once had; as target parameters they are what they say.
    """

    base: str
    updates: Mapping[str, LowRank | RoutedLowRank]
    transposed: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)
    beside_experts: bool = False

    @property
    def rank(self) -> int:
        """The largest of any module."""
        return max(update.rank for update in self.updates.values())

    def config(self) -> dict[str, Any]:
        """``adapter_config.json``."""
        modules, parameters = list(self.updates), []
        if self.beside_experts:
            modules, parameters = [], [_parameter(name, update) for name, update in self.updates.items()]
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base,
            "revision": None,
            "inference_mode": True,
            "r": self.rank,
            "lora_alpha": self.rank,
            "target_modules": modules,
            **({"target_parameters": parameters} if parameters else {}),
            "fan_in_fan_out": self.transposed,
            "bias": "none",
            "lora_dropout": 0.0,
            "init_lora_weights": True,
            "use_rslora": False,
            "use_dora": False,
            "modules_to_save": None,
            "rank_pattern": {},
            "alpha_pattern": {},
        }


def write_adapter(
    adapter: LoraAdapter,
    out: str | os.PathLike[str],
    dtype: str = "float32",
    card: Callable[[Path], object] | None = None,
) -> Path:
    """Write the folder, whole or not at all.

    Args:
        adapter: With at least one module.
        out: A new or empty folder.
        dtype: Of the factors. In float32 an edit's own are written as they are, bit for bit, but for powers of two that
            go from one factor to the other.
        card: Called with the folder when everything else is in it, and before it is ``out``.

    Raises:
        SettingError: There is no such precision, or the factors do not fit into it.
        OutputError: The folder is not empty, or cannot be written.
    """
    from safetensors.torch import save_file

    if dtype not in DTYPES:
        raise SettingError(f"the adapter's dtype is {dtype!r}: choose one of {', '.join(DTYPES)}")
    tensors: dict[str, Tensor] = {}
    for name, update in adapter.updates.items():
        module = _parameter(name, update).rpartition(".")[0] if adapter.beside_experts else name
        for part, tensor in zip(("lora_A", "lora_B"), update.factors(adapter.rank), strict=True):
            rounded = tensor.to(getattr(torch, dtype)).contiguous()
            if not rounded.isfinite().all():
                raise SettingError(f"{name}: NaN or infinity in {part} as {dtype}; take float32 or bfloat16")
            tensors[f"{_PREFIX}{module}.{part}.weight"] = rounded
    with new_directory(out, card) as folder:
        save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
        for name, content in ((CONFIG, adapter.config()), (ABOUT, adapter.about)):
            if content:
                text = json.dumps(content, indent=1, ensure_ascii=False)
                (folder / name).write_text(f"{text}\n", encoding="utf-8")
        write_manifest(folder)
    return Path(out)


def read_adapter(folder: str | os.PathLike[str]) -> LoraAdapter:
    """Read the folder of a LoRA adapter, of PEFT's or any tool's, with its scales in the factors.

    Raises:
        AdapterError: There is none, it is damaged, or holds something else than products of two factors; what it is
            is named.
    """
    path = user_path(folder)
    config = _json(path, CONFIG)
    if config is None:
        raise AdapterError(f"{path} is no adapter: there is no {CONFIG} in it")
    try:
        check_folder(path)
    except DamagedError as error:
        raise AdapterError(str(error)) from error
    _check_kind(path, config)
    factors: dict[str, dict[str, Tensor]] = {}
    for name, tensor in _tensors(path).items():
        match = re.fullmatch(r"(?:base_model\.model\.)?(.+)\.lora_(A|B)(?:\.default)?\.weight", name)
        if match is None:
            raise AdapterError(f"{path}: {name} is no factor of a linear map's change: it cannot be taken up")
        factors.setdefault(match[1], {})[match[2]] = tensor
    if not factors:
        raise AdapterError(f"{path} changes nothing: there are no factors in {TENSORS}")
    asked = [str(name) for name in config.get("target_parameters") or []]
    updates = dict(_update(path, config, module, asked, parts) for module, parts in factors.items())
    base, transposed = str(config.get("base_model_name_or_path") or ""), bool(config.get("fan_in_fan_out"))
    return LoraAdapter(base, updates, transposed, _json(path, ABOUT) or {}, bool(asked))


def _parameter(name: str, update: LowRank | RoutedLowRank) -> str:
    """What is changed, as a parameter."""
    return name if isinstance(update, RoutedLowRank) else f"{name}.weight"


def _target(path: Path, module: str, parameters: Sequence[str]) -> str | None:
    """The target parameter that the factors at a module are of; ``None``: the module itself is the target."""
    pairs = [parameter.rpartition(".")[::2] for parameter in parameters]
    own = {name for holder, name in pairs if f".{module}".endswith(f".{holder}" if holder else "")}
    if ".base_layer" in module or len(own) > 1:
        raise AdapterError(
            f"{path} changes several parameters of one module, {module.replace('.base_layer', '')}: of routed experts "
            "an edit changes the down maps alone, and only such a change can be taken up"
        )
    return f"{module}.{own.pop()}" if own else None


def _json(path: Path, name: str) -> dict[str, Any] | None:
    try:
        content = json_value((path / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path}: {name} cannot be read ({error}); restore it") from error
    if not isinstance(content, dict):
        raise AdapterError(f"{path}: {name} holds no object; restore it")
    return content


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path / TENSORS)
    except FileNotFoundError:
        raise AdapterError(f"{path}: no {TENSORS}; save the adapter with safe_serialization=True") from None
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path}: {TENSORS} cannot be read ({error}); restore it") from error


def _check_kind(path: Path, config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"{path} is an adapter of type {config.get('peft_type')}: only LoRA can be taken up")
    problems = [f"{key} ({what})" for key, what in _REFUSED.items() if config.get(key)]
    if config.get("bias", "none") != "none":
        problems.append(f"bias={config['bias']!r} (trained biases)")
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(_CHANGED_BASE):
        problems.append(f"init_lora_weights={start!r} (a start that changes the base)")
    if problems:
        raise AdapterError(f"{path} has {'; '.join(problems)}: only plain LoRA can be taken up")


def _update(
    path: Path, config: Mapping[str, Any], module: str, parameters: Sequence[str], parts: Mapping[str, Tensor]
) -> tuple[str, LowRank | RoutedLowRank]:
    """By the name that :class:`LoraAdapter` knows it by, the change that two factors are."""
    target = _target(path, module, parameters)
    if set(parts) != {"A", "B"} or any(part.dim() != 2 for part in parts.values()):
        raise AdapterError(f"{path} is damaged: {module} has no two factors that are matrices")
    right, left = parts["A"].T, parts["B"]
    try:
        rank = _by_pattern(config.get("rank_pattern"), target or module, config.get("r"))
        alpha = float(_by_pattern(config.get("alpha_pattern"), target or module, config.get("lora_alpha")))
    except (TypeError, ValueError, AttributeError, OverflowError, re.error) as error:
        raise AdapterError(f"{path} is damaged: {CONFIG} has no rank and alpha for {module} ({error!r})") from error
    usable = isinstance(rank, int) and rank > 0 and math.isfinite(alpha)
    experts, rest = divmod(left.shape[1], rank) if usable else (0, 0)
    if left.shape[1] != right.shape[1] or rest or experts < 1 or (experts > 1 and target is None):
        shapes = f"{tuple(parts['B'].shape)} and {tuple(parts['A'].shape)}"
        raise AdapterError(f"{path} is damaged: {module} has factors {shapes}, and {CONFIG} says rank {rank}")
    for part in (left, right):
        if not part.isfinite().all():
            raise AdapterError(f"{path} is damaged: {module} holds NaN or infinity")
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    wide = torch.promote_types(left.dtype, torch.float32)
    left, right = (left.double() * scale).to(wide), right.to(wide)
    if experts > 1 and target is not None:
        return target, RoutedLowRank.of_factors(right.T, left, rank)
    return module, LowRank(left, right).without_zeros()


def _by_pattern(pattern: Any, module: str, otherwise: Any) -> Any:
    """PEFT's rule: a key is a regular expression for the end of a module's name; the first that fits counts."""
    for key, value in (pattern or {}).items():
        check_pattern(key)
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return otherwise
