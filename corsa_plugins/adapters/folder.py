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
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from corsa_plugins.adapters.low_rank import LowRank
from corsa_plugins.errors import CorsaError, SettingError
from corsa_plugins.manifest import DamagedError, check_folder, write_manifest
from corsa_plugins.outputs import new_directory

__all__ = ["DTYPES", "AdapterError", "LoraAdapter", "read_adapter", "write_adapter"]

DTYPES = ("float32", "bfloat16", "float16")
CONFIG, TENSORS, ABOUT = "adapter_config.json", "adapter_model.safetensors", "corsa.json"

_PREFIX = "base_model.model."
_REFUSED = {
    "modules_to_save": "whole modules, which are no change of a weight by a product",
    "use_dora": "DoRA, whose change depends on the weight",
    "lora_bias": "biases",
    "trainable_token_indices": "trained tokens",
    "target_parameters": "parameters that are no module's weight, as fused experts have",
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
    """Changes of a model's linear maps as products.

    Attributes:
        base: The model they go onto: a name on the Hub, or a path.
        updates: By the name of the module.
        transposed: Whether the modules store their weights as (d_in, d_out), as GPT-2's do.
        about: What ``corsa.json`` says; empty for an adapter of another tool.
    """

    base: str
    updates: Mapping[str, LowRank]
    transposed: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """The largest of any module."""
        return max(update.rank for update in self.updates.values())

    def config(self) -> dict[str, Any]:
        """``adapter_config.json``."""
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base,
            "revision": None,
            "inference_mode": True,
            "r": self.rank,
            "lora_alpha": self.rank,
            "target_modules": list(self.updates),
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


def write_adapter(adapter: LoraAdapter, out: str | os.PathLike[str], dtype: str = "float32") -> Path:
    """Write the folder, whole or not at all.

    Args:
        adapter: With at least one module.
        out: A new or empty folder.
        dtype: Of the factors. In float32 an edit's own are written as they are, bit for bit, but for powers of two that
            go from one factor to the other.

    Raises:
        SettingError: There is no such precision, or the factors do not fit into it.
        OutputError: The folder is not empty, or cannot be written.
    """
    from safetensors.torch import save_file

    if dtype not in DTYPES:
        raise SettingError(f"the adapter's dtype is {dtype!r}: choose one of {', '.join(DTYPES)}")
    tensors: dict[str, Tensor] = {}
    for module, update in adapter.updates.items():
        factors = update.balanced().padded(adapter.rank)
        for part, tensor in (("lora_A", factors.right.T), ("lora_B", factors.left)):
            rounded = tensor.to(getattr(torch, dtype)).contiguous()
            if not rounded.isfinite().all():
                raise SettingError(f"{module}: NaN or infinity in {part} as {dtype}; take float32 or bfloat16")
            tensors[f"{_PREFIX}{module}.{part}.weight"] = rounded
    with new_directory(out) as folder:
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
    path = Path(folder).expanduser()
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
    updates = {module: _update(path, config, module, parts) for module, parts in factors.items()}
    base, transposed = str(config.get("base_model_name_or_path") or ""), bool(config.get("fan_in_fan_out"))
    return LoraAdapter(base, updates, transposed, _json(path, ABOUT) or {})


def _json(path: Path, name: str) -> dict[str, Any] | None:
    try:
        content = json.loads((path / name).read_text(encoding="utf-8"))
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


def _update(path: Path, config: Mapping[str, Any], module: str, parts: Mapping[str, Tensor]) -> LowRank:
    if set(parts) != {"A", "B"} or any(part.dim() != 2 for part in parts.values()):
        raise AdapterError(f"{path} is damaged: {module} has no two factors that are matrices")
    right, left = parts["A"].T, parts["B"]
    rank = _by_pattern(config.get("rank_pattern"), module, config.get("r"))
    alpha = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    if left.shape[1] != right.shape[1] or left.shape[1] != rank or not isinstance(alpha, int | float):
        shapes = f"{tuple(parts['B'].shape)} and {tuple(parts['A'].shape)}"
        raise AdapterError(f"{path} is damaged: {module} has factors {shapes}, and {CONFIG} says rank {rank}")
    for part in (left, right):
        if not part.isfinite().all():
            raise AdapterError(f"{path} is damaged: {module} holds NaN or infinity")
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    wide = torch.promote_types(left.dtype, torch.float32)
    used = ((left != 0).any(0) & (right != 0).any(0)).nonzero().flatten()  # not what is padded
    return LowRank((left[:, used].double() * scale).to(wide), right[:, used].to(wide).contiguous())


def _by_pattern(pattern: Any, module: str, otherwise: Any) -> Any:
    """PEFT's rule: a key is a regular expression for the end of a module's name; the first that fits counts."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return otherwise
