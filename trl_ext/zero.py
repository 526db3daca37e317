"""DeepSpeed's ZeRO, as ``accelerate``'s configurations or ``deepspeed`` of the training's ask for it.

Stage 3 keeps a part of every weight in each process and gathers the weights of a layer while it runs. Here that is
done to the frozen base, by DeepSpeed itself; the adapter stays whole in every process, in float32 and in nobody's
care but the trainer's. So norms, inner products and perturbations are those of whole tensors, an adapter is saved and
resumed as without DeepSpeed, and the perturbation, which a copy in bfloat16 would round away, is added as it is.

Stages 1 and 2 share out the optimizer's states and the gradients of what trains. Those of an adapter are small, and
every process keeps its own: training is plain data parallelism, with the same result.

DeepSpeed's optimizer never runs: it wants one gradient from a backward pass of its own, and CoRSA takes two from one.
:class:`~trl_ext.config.CoRSAConfig` reads what is asked for, and transformers and accelerate do not see it.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from accelerate import DeepSpeedPlugin
from torch import nn
from transformers import PreTrainedModel

from corsa_plugins.errors import SettingError
from trl_ext._trl import BaseTunerLayer, HfDeepSpeedConfig

__all__ = [
    "LAUNCHED",
    "Zero",
    "adapters_apart",
    "check_adapters",
    "is_partitioned",
    "partitioning",
    "read_zero",
    "variables_hidden",
]

LAUNCHED = "ACCELERATE_USE_DEEPSPEED"
"""What ``accelerate launch`` says DeepSpeed is asked for by, in the environment."""

_FILE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"

_ENGINE = "_corsa_zero_engine"

_WITHOUT_EFFECT = {"steps_per_print", "wall_clock_breakdown", "zero_allow_untested_optimizer", "fp16"}
_OF_THE_TRAINING = {
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "max_grad_norm",
    "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
}
"""What DeepSpeed and the training both have a setting for, by DeepSpeed's name."""

_GATHERING = {
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
    "stage3_model_persistence_threshold",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
    "overlap_comm",
    "memory_efficient_linear",
}
_OF_WHAT_TRAINS = {
    "allgather_bucket_size", "allgather_partitions", "contiguous_gradients", "reduce_bucket_size", "reduce_scatter",
    "round_robin_gradients", "stage3_gather_16bit_weights_on_model_save", "sub_group_size",
}  # fmt: skip


@dataclass(frozen=True)
class Zero:
    """What is asked of DeepSpeed.

    Attributes:
        stage: Of ZeRO, 0 to 3.
        settings: Of ``zero_optimization``, those that say how weights are gathered and where parts are kept.
        shared: What the training has settings for too, by DeepSpeed's name; ``"auto"`` left out.
        bf16: Whether DeepSpeed is to train in bfloat16, where that is said.
        first_reads: The first process alone reads the weights of the model.
    """

    stage: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    shared: Mapping[str, float] = field(default_factory=dict)
    bf16: bool | None = None
    first_reads: bool = False

    def check(self, args: Any) -> None:
        """See that the training agrees.

        Args:
            args: Of the training, once the processes are known.

        Raises:
            SettingError: It says otherwise, or DeepSpeed has nothing to work with.
        """
        for name, value in self.shared.items():
            ours = getattr(args, _OF_THE_TRAINING[name])
            if value != ours:
                raise SettingError(
                    f"DeepSpeed's {name} is {value:g} and {_OF_THE_TRAINING[name]} of the training {ours:g}: leave the "
                    "former out, or 'auto'."
                )
        if self.bf16 is not None and self.bf16 != bool(args.bf16):
            raise SettingError(
                f"DeepSpeed's bf16 is {self.bf16} and that of the training {bool(args.bf16)}: leave the former out, or "
                "'auto'."
            )
        if self.stage < 3:
            return
        if args.world_size == 1:
            raise SettingError(
                "ZeRO-3 keeps a part of a model in every process, and there is one: launch several (`accelerate launch "
                "--num_processes N`), or leave it out."
            )
        if importlib.util.find_spec("deepspeed") is None:
            raise SettingError("ZeRO-3 needs DeepSpeed: pip install deepspeed.")


@contextmanager
def variables_hidden(*names: str) -> Iterator[None]:
    """Within the block the environment has no variables of these names."""
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def read_zero(deepspeed: str | Mapping[str, Any] | None) -> Zero | None:
    """What ``accelerate launch`` asks of DeepSpeed, or ``deepspeed`` of the training, which goes first.

    Args:
        deepspeed: A configuration of DeepSpeed's, its file or its JSON.

    Returns:
        ``None`` where DeepSpeed is not asked for.

    Raises:
        SettingError: It cannot be done with CoRSA; the message names the setting.
    """
    if not deepspeed and os.environ.get(LAUNCHED, "false").lower() != "true":
        return None
    source = dict(deepspeed) if isinstance(deepspeed, Mapping) else deepspeed or os.environ.get(_FILE)
    try:
        given = HfDeepSpeedConfig(source).config if source else None
        plugin = DeepSpeedPlugin(hf_ds_config=source)
    except (ValueError, OSError) as error:
        raise SettingError(f"DeepSpeed's configuration cannot be read: {error}") from error
    config = plugin.deepspeed_config
    given = config if given is None else given  # accelerate adds to a configuration that is given
    section = config["zero_optimization"]
    _check(config, section)
    bf16 = (config.get("bf16") or {}).get("enabled", "auto")
    return Zero(
        stage=int(section.get("stage", 0)),
        settings={name: section[name] for name in section if name in {*_GATHERING, "offload_param"}},
        shared={name: given[name] for name in _OF_THE_TRAINING if given.get(name, "auto") != "auto"},
        bf16=None if bf16 == "auto" else bool(bf16),
        first_reads=bool(plugin.zero3_init_flag),
    )


def _check(config: Mapping[str, Any], section: Mapping[str, Any]) -> None:
    def given(name: str, of: Mapping[str, Any], key: str, without: Any) -> bool:
        return (of.get(name) or {}).get(key, without) not in (without, "auto")

    refused = {
        "fp16": (given("fp16", config, "enabled", False), "unscaled fp16 gradients underflow. Use bf16"),
        "optimizer": ("optimizer" in config, "set optim and learning_rate in the training's settings"),
        "scheduler": ("scheduler" in config, "set lr_scheduler_type in the training's settings"),
        "offload_optimizer": (
            given("offload_optimizer", section, "device", "none"),
            "the optimizer's states of an adapter are small, and stay where it is. Leave it out",
        ),
        "offload_param to nvme": (
            (section.get("offload_param") or {}).get("device") == "nvme",
            "it has not been tried. Use cpu",
        ),
    }
    for setting, (asked, reason) in refused.items():
        if asked:
            raise SettingError(f"DeepSpeed's {setting} is not supported with CoRSA: {reason}.")
    known = {*_WITHOUT_EFFECT, *_OF_THE_TRAINING, "train_batch_size", "bf16", "zero_optimization"}
    of_section = {*_GATHERING, *_OF_WHAT_TRAINS, "stage", "offload_optimizer", "offload_param"}
    for name, value in [*((n, v) for n, v in config.items() if n not in known),
                        *((n, v) for n, v in section.items() if n not in of_section)]:  # fmt: skip
        asked = bool(value) and value.get("enabled", True) if isinstance(value, Mapping) else value
        if asked not in (None, False, 0):
            raise SettingError(f"DeepSpeed's {name} is not supported with CoRSA: leave it out.")


def is_partitioned(base: nn.Module) -> bool:
    """Whether a base model's weights are in parts (:func:`partitioning`)."""
    return _ENGINE in vars(base)


@contextmanager
def partitioning(base: PreTrainedModel, zero: Zero) -> Iterator[Any]:
    """Within the block ``part(module)`` puts weights that are on this process's device in parts; when it ends, those
    of the whole model are gathered where they are needed. Every process must do the same.

    Args:
        base: Adapters on it are to be apart (:func:`adapters_apart`).
        zero: How.
    """
    import deepspeed

    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
    width = int(getattr(base.config.get_text_config(), "hidden_size", 0)) or 1024
    automatic = {
        "stage3_prefetch_bucket_size": int(0.9 * width * width),
        "stage3_param_persistence_threshold": 10 * width,
    }  # as transformers has them
    settings = {name: automatic.get(name) if value == "auto" else value for name, value in zero.settings.items()}
    settings = automatic | {name: value for name, value in settings.items() if value is not None}
    config = {
        "train_micro_batch_size_per_gpu": 1,  # it wants one; nothing depends on it
        "zero_optimization": {"stage": 3, **settings},
        "steps_per_print": None,
    }
    yield lambda module: deepspeed.zero.Init(module=module, config_dict_or_path=config)
    vars(base)[_ENGINE] = deepspeed.initialize(model=base, config=config)[0]  # not as a module of it, which it is in


@contextmanager
def adapters_apart(base: nn.Module) -> Iterator[list[nn.Module]]:
    """Within the block the base's layers have no adapters: they are not to be put in parts. They are given instead."""
    places = [
        (layer._modules, name, child)
        for layer in base.modules()
        if isinstance(layer, BaseTunerLayer)
        for name, child in layer._modules.items()
        if name != "base_layer" and child is not None
    ]
    for modules, name, _ in places:
        del modules[name]
    try:
        yield [child for _, _, child in places]
    finally:
        for modules, name, child in places:
            modules[name] = child


def check_adapters(base: nn.Module) -> None:
    """That adapters use nothing of a base in parts but what comes out of its layers.

    Raises:
        SettingError: DoRA and its like, or adapters of routed experts.
    """
    from deepspeed.utils import z3_leaf_module

    gathered_at_once = [module for module in base.modules() if z3_leaf_module(module)]
    experts = {part for module in gathered_at_once for part in module.modules()}
    for name, layer in base.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        if hasattr(layer, "parameter_name") or layer in experts:
            raise SettingError(
                f"{name}: adapters of routed experts are not supported with ZeRO-3. Use FSDP2, or name other "
                "target_modules."
            )
        if getattr(layer, "lora_variant", None):
            raise SettingError(f"{name}: variants of LoRA are not supported with ZeRO-3. Use FSDP2, or leave it out.")
