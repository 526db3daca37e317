"""A base model in shards: each process keeps a part of every decoder layer, and has all of a layer while it runs.

FSDP2 shards, or DeepSpeed's ZeRO-3 (:mod:`trl_ext.zero`), as ``accelerate``'s configuration asks for it. What is
sharded is the frozen base; the adapter stays whole in every process, and with FSDP2 the embeddings and the head do too.
So norms, inner products and perturbations are those of whole tensors, and an adapter is saved and resumed as without
sharding.

The trainer shards by itself, before anything is run, and accelerate goes on as with plain data parallelism. What
accelerate does would shard the adapter too, and when training begins, which is behind the first pass.

Layers come together by collective calls: every process has to run the model as often as every other one.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from accelerate import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, fully_shard
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy
from transformers import PreTrainedModel, TrainingArguments

from corsa_plugins.errors import SettingError
from corsa_plugins.model.batching import base_model, input_device
from corsa_plugins.model.borrowing import attribute, eval_mode
from trl_ext.zero import (
    LAUNCHED,
    Zero,
    adapters_apart,
    check_adapters,
    is_partitioned,
    partitioning,
    variables_hidden,
)

__all__ = [
    "Sharding",
    "first_process_reads",
    "is_sharded",
    "largest",
    "not_by_accelerate",
    "shard",
    "sharding_asked_for",
]

_BY_FSDP = "ACCELERATE_USE_FSDP"


@dataclass(frozen=True)
class Sharding:
    """How a base model is sharded.

    Attributes:
        layers: Names of the classes that are sharded by themselves; empty for what the model says cannot be split.
        zero: By ZeRO-3; ``None``: by FSDP2.
    """

    layers: tuple[str, ...] = ()
    zero: Zero | None = None


def sharding_asked_for(args: TrainingArguments) -> Sharding | None:
    """What ``accelerate launch`` or ``fsdp`` of the configuration asks for; ``None`` where it is no sharding.

    Raises:
        SettingError: It cannot be done with CoRSA; the message names the setting.
    """
    zero: Zero | None = getattr(args, "zero", None)
    if zero is not None:
        zero.check(args)
        return Sharding(zero=zero) if zero.stage == 3 else None
    settings = getattr(args, "fsdp_plugin_args", None)
    if settings is None and os.environ.get(_BY_FSDP, "false").lower() != "true":
        return None
    version = int(settings["fsdp_version"] if settings else os.environ.get("FSDP_VERSION", "1"))
    if version != 2:
        raise SettingError(
            "FSDP1 is not supported: it puts the adapter's weights into flat parameters with the base's. Set "
            "fsdp_version: 2 in accelerate's file (`accelerate to-fsdp2` rewrites one), or version 2 in fsdp_config."
        )
    if args.world_size == 1:
        raise SettingError(
            "FSDP shards a model over processes, and there is one: launch several (`accelerate launch "
            "--num_processes N`), or leave it out."
        )
    if "ignored_params" not in inspect.signature(fully_shard).parameters:
        raise SettingError(f"FSDP of a base without its adapter needs torch 2.7, and this is {torch.__version__}.")
    if not hasattr(FullyShardedDataParallelPlugin, "fsdp_version"):
        raise SettingError("FSDP2 needs a newer accelerate: pip install -U accelerate.")
    plugin = FullyShardedDataParallelPlugin(**(settings or {}))
    _check(plugin)
    return Sharding(tuple(plugin.transformer_cls_names_to_wrap or ()))


def _check(plugin: FullyShardedDataParallelPlugin) -> None:
    refused = {
        "fsdp_offload_params: true": (
            isinstance(plugin.cpu_offload, CPUOffloadPolicy),
            "weights would be where nothing is run. Leave it out, and quantise the base to 4 bits or add processes",
        ),
        "fsdp_reshard_after_forward: false": (
            not plugin.reshard_after_forward,
            "the whole base would stay in every process, and plain data parallelism is faster then. Set it to true",
        ),
        "fsdp_activation_checkpointing: true": (
            plugin.activation_checkpointing,
            "layers are checkpointed by the model. Set it to false, and gradient_checkpointing to true",
        ),
        "fsdp_auto_wrap_policy: SIZE_BASED_WRAP": (
            plugin.auto_wrap_policy is size_based_auto_wrap_policy,
            "the base is sharded by the decoder layer. Set it to TRANSFORMER_BASED_WRAP",
        ),
        "fsdp_ignored_modules": (
            plugin.ignored_modules is not None,
            "what is left out is the adapter, the embeddings and the head. Leave it out",
        ),
        "parallelism_config": (
            os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "false").lower() == "true",
            "the base is sharded over all processes, in one dimension. Leave it out",
        ),
    }
    for setting, (given, reason) in refused.items():
        if given:
            raise SettingError(f"{setting} is not supported with CoRSA: {reason}.")


@contextmanager
def not_by_accelerate(args: TrainingArguments) -> Iterator[None]:
    """Within the block nobody asks accelerate to shard what it prepares."""
    with variables_hidden(_BY_FSDP, LAUNCHED), attribute(args, "fsdp_plugin_args", None):
        yield


@contextmanager
def first_process_reads(sharding: Sharding | None) -> Iterator[None]:
    """Within the block transformers reads a model's weights in the first process of a machine alone, where that is
    asked for with ZeRO-3: what :func:`shard` gives to the others. With FSDP the launcher asks for it."""
    if sharding is None or sharding.zero is None or not sharding.zero.first_reads:
        yield
        return
    asked = {_BY_FSDP: "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    with variables_hidden(*asked):
        os.environ.update(asked)
        try:
            yield
        finally:
            for name in asked:
                os.environ.pop(name, None)


def is_sharded(model: Any) -> bool:
    """Whether :func:`shard` has sharded the model, or the one inside a ``PeftModel``."""
    base = base_model(model)
    return isinstance(base, FSDPModule) or is_partitioned(base)


def shard(model: Any, sharding: Sharding, device: torch.device) -> None:
    """Shard the base of a model over all processes; those of one that is sharded already stay as they are.

    Weights and buffers come from the first process, whose model alone needs to have any. Afterwards all are on
    ``device``, and the model has been run on two tokens.

    Args:
        model: A causal language model, with adapters or without; the same in every process.
        sharding: How.
        device: Of this process.

    Raises:
        SettingError: Its weights are quantised in a way that has no shards, or it has no such layers.
    """
    base: PreTrainedModel = base_model(model)
    if is_sharded(model):
        for parameter in (p for name, p in model.named_parameters() if "lora_" in name):
            dist.broadcast(parameter.data, src=0)
    elif sharding.zero is not None:
        _partition(base, sharding.zero, device)
    else:
        _shard(base, sharding, device)
    if is_partitioned(base):
        check_adapters(base)


def _partition(base: PreTrainedModel, zero: Zero, device: torch.device) -> None:
    if getattr(base, "is_quantized", False):
        raise SettingError("ZeRO-3 of a quantised base is not supported: use FSDP2, which shards one of 4 bits.")
    received: dict[Tensor, Tensor] = {}
    with adapters_apart(base) as adapters:
        for adapter in adapters:
            _from_first_process(adapter, device)
        layers = _layers(base, ())
        with partitioning(base, zero) as part:
            for layer in layers:  # a layer is all that is ever whole at once
                _from_first_process(layer, device, received=received)
                part(layer)
            _from_first_process(base, device, but=layers, received=received)
            part(base)


def _shard(base: PreTrainedModel, sharding: Sharding, device: torch.device) -> None:
    adapters = {parameter for name, parameter in base.named_parameters() if "lora_" in name}
    layers = _layers(base, sharding.layers)
    _check_storage(layers)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in layers:
        received = _from_first_process(layer, device)
        fully_shard(layer, mesh=mesh, ignored_params={new for old, new in received if old in adapters})
    received = _from_first_process(base, device, but=layers)
    fully_shard(base, mesh=mesh, ignored_params={new for _, new in received})
    with eval_mode(base):  # layers that are run by themselves have to be known as parts of the model
        base(input_ids=torch.tensor([[0, 1]], device=input_device(base)), use_cache=False)


def largest(here: int, device: torch.device) -> int:
    """The largest of the numbers that the processes give; every process asks."""
    number = torch.tensor(here, device=device)
    dist.all_reduce(number, op=dist.ReduceOp.MAX)
    return int(number)


def _layers(base: PreTrainedModel, names: Sequence[str]) -> list[nn.Module]:
    classes = set(names or getattr(base, "_no_split_modules", None) or ())
    layers = [module for module in base.modules() if type(module).__name__ in classes]
    if not layers:
        raise SettingError(
            f"A base is sharded by the layer, and {type(base).__name__} has no layers of the classes "
            f"{sorted(classes)}: use FSDP2, and name theirs in fsdp_transformer_layer_cls_to_wrap."
        )
    return layers


def _check_storage(layers: Sequence[nn.Module]) -> None:
    for name, parameter in (named for layer in layers for named in layer.named_parameters()):
        if parameter.is_floating_point():
            continue
        kind = type(parameter).__name__
        cure = (
            "set bnb_4bit_quant_storage to the precision of its other weights, such as bfloat16"
            if kind == "Params4bit"
            else "quantise it to 4 bits with bnb_4bit_quant_storage, or not at all"
        )
        raise SettingError(f"FSDP cannot shard {name}, a {kind} of {parameter.dtype}: {cure}.")


def _from_first_process(
    module: nn.Module,
    device: torch.device,
    but: Sequence[nn.Module] = (),
    received: dict[Tensor, Tensor] | None = None,
) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Give the tensors of a module, those of ``but`` left out, the values of the first process, on the device.

    Args:
        received: What other modules, whose tensors it may share, have got already; gets what this one does.

    Returns:
        Each of its parameters as it was and as it is: another one where it had no memory.
    """
    left_out = {part for layer in but for part in layer.modules()}
    received = {} if received is None else received
    for part in module.modules():
        if part in left_out:
            continue
        for of_part in (part._parameters, part._buffers):
            for name, tensor in of_part.items():
                if tensor is not None:
                    if tensor not in received:
                        received[tensor] = _received(tensor, device)
                    of_part[name] = received[tensor]  # type: ignore[assignment]
    return [(old, new) for old, new in received.items() if isinstance(old, nn.Parameter)]  # type: ignore[misc]


def _received(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor with the values of the first process, on the device: itself, unless it had no memory."""
    if tensor.is_meta:
        room = torch.empty_like(tensor, device=device)
        tensor = nn.Parameter(room, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else room
    else:
        tensor.data = tensor.data.to(device).contiguous()
    dist.broadcast(tensor.data, src=0)
    return tensor
