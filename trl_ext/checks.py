"""What the trainer cannot work with, each refused before training with the reason and the cure."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from peft import LoraConfig, PeftModel
from pydantic import Field
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import is_liger_kernel_available
from trl import DPOConfig

from corsa_plugins.errors import SettingError
from corsa_plugins.model.placement import is_offloaded
from corsa_plugins.settings import Count, NonNegative, Positive, check_fields, did_you_mean
from trl_ext._trl import REFERENCE, TRAINED, carries_adapter
from trl_ext.sharding import is_sharded, sharding_asked_for

__all__ = [
    "LOSSES",
    "REFERENCES",
    "check_adapter",
    "check_adapter_settings",
    "check_base",
    "check_checkpointing",
    "check_config",
    "check_in_memory",
    "check_launch",
    "check_lora_config",
    "check_offloading",
    "check_trainable",
    "check_whole",
    "warn_of_repeated_rows",
]

logger = logging.getLogger(__name__)

Reference = Literal["base", "adapter"]
REFERENCES: tuple[str, ...] = get_args(Reference)
"""What the reference of the DPO loss may be."""


LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sigmoid_norm",
)  # fmt: skip
"""What TRL knows as ``loss_type``; it says so itself only in the first step."""

Seed = Annotated[int, Field(ge=0, lt=2**32, description="an integer from 0 to 4294967295")]


@dataclass(frozen=True)
class _Declared:
    """Ranges of fields whose own annotations are read by the parser of the command line, which knows plain types."""

    learning_rate: Positive
    reference: Reference
    one_backward: bool
    share_prompts: bool
    per_device_train_batch_size: Count
    per_device_eval_batch_size: Count
    gradient_accumulation_steps: Count
    max_grad_norm: NonNegative | None
    seed: Seed
    data_seed: Seed | None
    keep_batch_size: Count
    find_learning_rate: bool


@dataclass(frozen=True)
class _DeclaredAdapter:
    lora_r: Count
    lora_alpha: Count
    lora_dropout: Annotated[float, Field(ge=0, lt=1)]


# --- Settings ---


def check_config(config: DPOConfig) -> None:
    """What a :class:`~trl_ext.config.CoRSAConfig` may say, apart from CoRSA's own settings
    (:mod:`corsa_plugins.corsa.settings`).

    Raises:
        SettingError: the message names the setting.
    """
    check_fields(_Declared, vars(config))
    if config.output_dir == "":
        raise SettingError("output_dir is empty, which would be the current folder: name one for the adapter.")
    if config.max_steps <= 0 and not config.num_train_epochs > 0:
        raise SettingError(
            f"num_train_epochs={config.num_train_epochs!r} with max_steps={config.max_steps!r}: no step would be taken "
            "and the adapter saved untrained. Give a number of epochs above 0, such as 10, or of steps in max_steps."
        )
    loss_types = [config.loss_type] if isinstance(config.loss_type, str) else config.loss_type
    unknown = sorted(set(loss_types) - {*LOSSES, "sft"})
    if unknown:
        raise SettingError(
            f"loss_type={unknown[0]!r}: {did_you_mean(unknown[0], LOSSES, 'the preference losses are')}."
        )
    if len(loss_types) != 1 or loss_types[0] == "sft" or config.loss_weights is not None:
        raise SettingError(
            f"loss_type={config.loss_type!r} with loss_weights={config.loss_weights!r}: CoRSA adds the SFT loss "
            "itself. Name one preference loss in `loss_type`, such as 'sigmoid', leave `loss_weights` unset, and "
            "set `dpo_weight`."
        )
    if config.router_aux_loss_coef not in (None, 0.0):
        raise SettingError("router_aux_loss_coef must be 0.0: the load-balancing loss is not part of CoRSA.")
    if config.fp16:
        raise SettingError(
            "fp16=True is not supported: the two gradients of a step are compared and projected before the "
            "optimizer sees them, outside the gradient scaler's reach, and unscaled fp16 gradients underflow. "
            "Use bf16=True, or bf16=False for float32."
        )
    if config.use_liger_kernel and not is_liger_kernel_available():
        raise SettingError("use_liger_kernel=True needs liger: pip install liger-kernel, or leave it out")
    if config.torch_compile:
        raise SettingError(
            "torch_compile=True is not supported: a compiled backward pass gives one gradient, and CoRSA takes two "
            "from it. Leave it out."
        )
    if any(part in str(getattr(config.optim, "value", config.optim)) for part in ("lomo", "layerwise")):
        raise SettingError(
            f"optim={config.optim!r} is not supported: it steps inside the backward pass, before the two gradients "
            "have been merged. Use another optimizer, such as 'adamw_torch'."
        )


def check_adapter_settings(settings: Any) -> None:
    """What the adapter's own settings may be (``lora_r``, ``lora_alpha``, ``lora_dropout``).

    Raises:
        SettingError: the message names the setting.
    """
    check_fields(_DeclaredAdapter, vars(settings))


def check_checkpointing(config: DPOConfig) -> None:
    """To be called when the configuration has read the JSON that a command line gives.

    Raises:
        SettingError: reentrant checkpointing is asked for.
    """
    if (config.gradient_checkpointing_kwargs or {}).get("use_reentrant"):
        raise SettingError(
            "gradient_checkpointing_kwargs={'use_reentrant': True} (activation_checkpointing_kwargs in newer "
            "transformers) is not supported: reentrant checkpointing works with .backward() alone. Set "
            "'use_reentrant' to False."
        )


def check_launch(args: TrainingArguments) -> None:
    """How the training is launched, as far as ``accelerate`` says it beside the configuration.

    Raises:
        SettingError: with DeepSpeed or FSDP of a kind that cannot work.
    """
    sharding_asked_for(args)


def check_offloading(args: Any, obstacle: str) -> None:
    """Two backward passes are needed, because of ``obstacle``.

    Raises:
        SettingError: activations are to be offloaded, which serves one.
    """
    if args.activation_offloading and args.dpo_weight > 0:
        raise SettingError(
            f"activation_offloading=True cannot be used here: it serves a single backward pass, and two are needed "
            f"because {obstacle}. Set it to False."
        )


def check_whole(args: TrainingArguments, model: nn.Module) -> None:
    """Whether one process alone can run the model, or all can in step, as following answers needs.

    Raises:
        SettingError: its weights are spread over processes.
    """
    if is_sharded(model):
        return
    sharded = bool(args.fsdp) or _launched_with_fsdp()
    if sharded or is_deepspeed_zero3_enabled() or any(isinstance(p, DTensor) for p in model.parameters()):
        raise SettingError(
            "the model's weights are spread over processes (FSDP, ZeRO-3 or tensor parallelism), and one process alone "
            "cannot follow the answers: leave the history out"
        )


def warn_of_repeated_rows(args: TrainingArguments, rows: int) -> None:
    """Where batches are split or dispatched among processes that cannot share the rows evenly, some are taken twice.

    Args:
        args: Of the training.
        rows: Of the training data set.
    """
    together = args.per_device_train_batch_size * args.world_size
    if args.world_size > 1 and rows % together and not args.dataloader_drop_last:
        logger.warning(
            "%d rows are no multiple of %d processes with batches of %d: %d of them are taken twice in every epoch, so "
            "the result is not that of one process. Leave split_batches and dispatch_batches out of "
            "accelerator_config, give a multiple, or set dataloader_drop_last=True, which leaves some out.",
            rows,
            args.world_size,
            args.per_device_train_batch_size,
            -rows % together,
        )


def _launched_with_fsdp() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


# --- Adapters ---

# They fold a part of the adapter's initial value into the base weights, and adapter off is then not the base model.
_INITIALIZATIONS_THAT_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def check_lora_config(config: Any, new: bool = False) -> None:
    """An adapter's configuration.

    Args:
        config: What may be a ``LoraConfig``.
        new: The adapter is yet to be made.

    Raises:
        TypeError: it is of another kind of adapter.
        SettingError: base weights would train too, or change at the start.
    """
    if not isinstance(config, LoraConfig):
        raise TypeError(
            f"`peft_config` must be a `peft.LoraConfig`: CoRSA trains LoRA parameters. Got `{type(config).__name__}`."
        )
    if config.modules_to_save:
        raise SettingError(
            f"`modules_to_save={list(config.modules_to_save)}` makes base weights trainable, and CoRSA trains LoRA "
            "parameters alone. Remove it from your `LoraConfig`."
        )
    if config.bias != "none":
        raise SettingError(
            f"`bias={config.bias!r}` makes base biases trainable, and CoRSA trains LoRA parameters alone. Set it to "
            "'none' in your `LoraConfig`."
        )
    start = config.init_lora_weights
    if new and isinstance(start, str) and start.startswith(_INITIALIZATIONS_THAT_CHANGE_THE_BASE):
        raise SettingError(
            f"`init_lora_weights={start!r}` changes the base weights, and CoRSA's reference is the base model as it "
            "was. Use True, 'gaussian', 'orthogonal' or 'eva' in your `LoraConfig`."
        )


def check_base(model: str | PreTrainedModel) -> None:
    """A model that gets a new adapter.

    Raises:
        SettingError: it has one already.
    """
    if not isinstance(model, str) and carries_adapter(model):
        raise SettingError(
            "The model carries an adapter that was put on it without a `PeftModel`, and a new one would replace it. "
            "To train on it, load it with `PeftModel.from_pretrained(base, path, is_trainable=True)`."
        )


def check_backbone(model: PreTrainedModel) -> None:
    """A model whose head TRL runs itself, behind what ``base_model`` gives.

    Raises:
        SettingError: that is the model itself, as of Llama 4's classes.
    """
    if model.base_model is model:
        raise SettingError(
            f"{type(model).__name__} does not say which part of it lies before its head (`base_model_prefix` is "
            f"{model.base_model_prefix!r}, and it has no such module), and TRL cannot train it without. Edit it with "
            "alphaedit+ or rsft."
        )


def check_in_memory(model: str | nn.Module) -> None:
    """A model that an adapter trains on.

    Raises:
        SettingError: it is partly offloaded.
    """
    if not isinstance(model, str) and is_offloaded(model):
        raise SettingError(
            "The model is partly offloaded (its device map has disk, or cpu beside a GPU): PEFT makes the adapter's "
            "weights where the layers' are, which is nowhere then, so nothing would train. Load it without offloading, "
            "quantised if it must be; or edit it with alphaedit+ or rsft, which change offloaded models."
        )


def check_adapter(model: PeftModel) -> None:
    """A model whose adapter is trained on.

    Raises:
        SettingError: the adapter has another name, is frozen or is not the active one; TRL's name for the reference is
            taken; base weights are trainable.
    """
    if REFERENCE in model.peft_config:
        raise SettingError(
            f"The model has an adapter named {REFERENCE!r}, the name TRL gives to its reference. Remove it with "
            f"`model.delete_adapter({REFERENCE!r})`, or load it under another name."
        )
    if TRAINED not in model.peft_config or model.active_adapters != [TRAINED]:
        raise SettingError(
            f"The model's adapters are {sorted(model.peft_config)}, active {model.active_adapters}: the one to train "
            f"must be named {TRAINED!r} and be the active one. Load it with "
            "`PeftModel.from_pretrained(model, path, is_trainable=True)`."
        )
    check_lora_config(model.peft_config[TRAINED])
    check_trainable(model)


def check_trainable(model: nn.Module) -> None:
    """That LoRA parameters train, and no others.

    Raises:
        SettingError: base weights are trainable, or nothing is.
    """
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trainable:
        raise SettingError(
            "Nothing to train: every parameter of the model is frozen. Adapters load frozen unless asked otherwise: "
            "use `PeftModel.from_pretrained(model, path, is_trainable=True)`."
        )
    others = [name for name in trainable if "lora_" not in name]
    if others:
        shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        raise SettingError(
            f"Base weights are trainable ({shown}), and CoRSA trains LoRA parameters alone. Freeze them "
            "(`parameter.requires_grad_(False)`), or pass the base model with a `peft_config`."
        )
