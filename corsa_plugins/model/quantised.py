"""Models whose linear maps are kept in 8 bits or fewer: which maps these are, and what they are stored as.

That a map is quantised is told by how its weight is kept, never by what its class is called: by something else than a
matrix (d_out, d_in) of floating-point numbers of 16 bits or more. Nothing here, and nothing that builds on it, writes
to such a weight; a change goes beside it (:mod:`corsa_plugins.model.branch`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from corsa_plugins.errors import SettingError, require
from corsa_plugins.model.placement import named_values

__all__ = [
    "QUANTISED",
    "has_quantised_maps",
    "is_quantised",
    "keep_layout",
    "parts_of",
    "plain_values",
    "quantisation_config",
    "refuse_quantised",
    "stored_parts",
    "unpacks",
]

_EXTRA = "quantised"
_PACKS = "support_avx512bf16_for_cpu"
_NOISY = "bitsandbytes.autograd._functions"
"""Warns at every step that 8-bit products are made in float16."""


@dataclass(frozen=True)
class _Kind:
    package: str
    make: Callable[[torch.dtype], Any]


def _torchao_int8(dtype: torch.dtype) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def _torchao_int4(dtype: torch.dtype) -> Any:
    from torchao.quantization import IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup
    from transformers import TorchAoConfig

    types: Any = torch  # which does not tell type checkers of this one
    return TorchAoConfig(IntxWeightOnlyConfig(weight_dtype=types.int4, granularity=PerGroup(32)))


def _nf4(dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def _llm_int8(dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    logging.getLogger(_NOISY).setLevel(logging.ERROR)
    return BitsAndBytesConfig(load_in_8bit=True)


_KINDS: Mapping[str, _Kind] = {
    "int8": _Kind("torchao", _torchao_int8),
    "int4": _Kind("torchao", _torchao_int4),
    "nf4": _Kind("bitsandbytes", _nf4),
    "llm-int8": _Kind("bitsandbytes", _llm_int8),
}

QUANTISED = tuple(_KINDS)
"""What a model can be quantised to while it is read: ``int8`` and ``int4`` (groups of 32, a byte each) by torchao,
``nf4`` and ``llm-int8`` by bitsandbytes."""


def quantisation_config(kind: str, dtype: torch.dtype) -> Any:
    """What tells ``from_pretrained`` to quantise the linear maps while they are read.

    Args:
        kind: One of :data:`QUANTISED`.
        dtype: Of everything else, in which 4-bit weights are multiplied too.

    Raises:
        MissingExtraError: The package for this kind, or accelerate, is not installed.
    """
    chosen = _KINDS[kind]
    for package in (chosen.package, "accelerate"):
        require(package, _EXTRA, what=f"dtype {kind}")
    return chosen.make(dtype)


def is_quantised(module: nn.Module) -> bool:
    """Whether it is a linear map whose own weight is something else than a matrix of floating-point numbers."""
    if not hasattr(module, "in_features") or next(module.children(), None) is not None:
        return False
    own: Any = dict(module.named_parameters(recurse=False))
    weight = own.get("weight")
    if weight is None:  # GPTQ and AWQ keep packed integers in buffers
        return any(not buffer.is_floating_point() for buffer in module.buffers(recurse=False))
    plain = weight.is_floating_point() and weight.element_size() > 1 and not _made_of_others(weight)
    return not plain or tuple(weight.shape) != (module.out_features, module.in_features)


def unpacks(module: nn.Module) -> bool:
    """Whether it is a quantised map of torchao's, whose weight is unpacked as a whole each time it is run."""
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    return weight is not None and _made_of_others(weight)


def has_quantised_maps(model: nn.Module) -> bool:
    """Whether any of its linear maps is quantised."""
    return any(is_quantised(module) for module in model.modules())


def keep_layout(model: nn.Module) -> None:
    """Have 4-bit weights of bitsandbytes keep their layout on CPUs that it packs them anew for.

    They are packed when a model is first asked something, in evaluation mode and without a gradient, and bitsandbytes
    0.50 does not put their scales back when it unpacks them, as it does for a gradient and for saving: gradients
    through them are zero, and what is trained in front of them does not learn.

    Raises:
        SettingError: Some were packed already; the first is named.
    """
    for name, module in model.named_modules():
        if hasattr(module, _PACKS):
            setattr(module, _PACKS, False)
        if getattr(getattr(getattr(module, "weight", None), "quant_state", None), "packing_format_for_cpu", False):
            raise SettingError(
                f"bitsandbytes has packed the 4-bit weights of {name or 'this layer'} for the CPU, when the model was "
                "first run, and cannot unpack them exactly, nor give a gradient through them: load the model by "
                "corsa_plugins.model.loading.load_model, or call keep_layout of corsa_plugins.model.quantised before "
                "it is first run"
            )


def stored_parts(module: nn.Module) -> dict[str, Tensor]:
    """What a quantised map is stored as: plain tensors by name, as it is saved.

    Raises:
        SettingError: It was packed for this CPU, and cannot be unpacked.
    """
    keep_layout(module)
    return dict(_flat(module.state_dict()))


def plain_values(model: nn.Module, *, buffers: bool = False) -> Iterator[tuple[str, Tensor]]:
    """:func:`~corsa_plugins.model.placement.named_values`, with quantised weights as the tensors they are stored as."""
    quantised = {name: module for name, module in model.named_modules() if is_quantised(module)}
    for name, tensor in named_values(model, buffers=buffers):
        if name.rpartition(".")[0] not in quantised:
            yield from _flat({name: tensor})
    for name, module in quantised.items():
        parts = stored_parts(module)
        if buffers:
            parts |= {own: tensor for own, tensor in module.named_buffers(recurse=False) if own not in parts}
        for own, tensor in parts.items():
            yield f"{name}.{own}", tensor


def quantised_module(model: nn.Module) -> str | None:
    """The name of its first quantised map; ``None`` if there is none."""
    return next((name for name, module in model.named_modules() if is_quantised(module)), None)


def refuse_quantised(model: nn.Module, what: str) -> None:
    """Where weights are changed in place, or read as numbers: refuse a model with quantised ones.

    Raises:
        SettingError: It has some; the first is named.
    """
    name = quantised_module(model)
    if name is not None:
        raise SettingError(
            f"{name} is quantised, and {what}: load the model in bfloat16 or float32, or edit it with alphaedit+, "
            "whose change lies beside the weights, or by an adapter (corsa, lora-sft)"
        )


def parts_of(tensor: Tensor) -> list[Tensor]:
    """The plain tensors that a quantised one is made of; any other one is by itself."""
    return [part for _, part in _flat({"": tensor})]


def _made_of_others(tensor: Tensor) -> bool:
    """Whether it is made of other tensors, which are no parts of one over several devices."""
    return hasattr(tensor, "__tensor_flatten__") and not type(tensor).__module__.startswith("torch.")


def _flat(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        if _made_of_others(tensor):
            packed: Any = tensor
            yield from _flat({f"{name}.{part}": getattr(packed, part) for part in packed.__tensor_flatten__()[0]})
        else:
            yield name, tensor.detach()
