"""Which weights of a mixture of experts an adapter trains: its experts, on purpose, and never what routes.

PEFT's ``all-linear`` finds modules that are linear maps. Of fused experts it trains nothing on some families, as their
weights are parameters of no such module; on others it trains them and the router, and leaves shared experts and dense
blocks out. Which it is depends on the names that a family had in older versions of transformers.

Nor are all linear maps of use: those of a model's eyes are not reached by text, and some of Mamba's PEFT refuses, as
their weights are read and not their layers run.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from corsa_plugins.errors import SettingError
from corsa_plugins.model.architecture import ArchitectureError, Mixture, find_architecture

if TYPE_CHECKING:
    from peft import LoraConfig

__all__ = ["fitted", "mixtures_of"]

logger = logging.getLogger(__name__)

_NAMED = 4

_TAKEN_FOR_EXPERTS = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
"""Names that experts' own layers had before they were fused: PEFT makes weights of the experts, or of the router, of
every target module of such a name, whichever module was meant. As target parameters they are what they say."""


_REFUSED = dict.fromkeys(("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"), "out_proj")
"""By the type of the model, the linear map that PEFT refuses an adapter."""


def fitted(config: LoraConfig, model: str | PreTrainedModel, init_kwargs: dict[str, Any]) -> LoraConfig:
    """The adapter for this model: ``all-linear`` is what is linear in the text decoder, but what PEFT refuses, and of a
    mixture of experts its experts and not what routes. Targets that are named one by one stay; that a router is among
    them is said.

    Args:
        config: Of the adapter that is to be made. It is not changed.
        model: The model without an adapter, or its name: its weights are not read then.
        init_kwargs: What it will be loaded with.

    Raises:
        SettingError: Dropout, DoRA or biases are asked for, which PEFT has none of for fused experts.
    """
    whole: Any = model if not isinstance(model, str) else _skeleton(model, init_kwargs)
    if whole is not None and _is_all_linear(config):
        config = _excluding(config, _useless(whole))
    mixtures = mixtures_of(whole)
    if not mixtures:
        return config
    routers = [router.name for mixture in mixtures for router in mixture.routers]
    if not _is_all_linear(config):
        asked = [name for name in routers if _is_target(config, name)]
        if asked:
            logger.warning("The adapter trains what routes tokens to experts, as is asked: %s.", _listed(asked))
        return config
    config = copy.deepcopy(config)
    fused = sorted({_without_number(name) for mixture in mixtures for name in mixture.parameters})
    if config.target_parameters is not None:
        fused = list(config.target_parameters)
    modules, parameters = _linear_layers(whole, routers, config.exclude_modules)
    if fused or parameters:
        _check_fused(config, (fused or parameters)[0])
    config.target_modules, config.target_parameters = modules, [*fused, *parameters]
    unknown = [mixture.name for mixture in mixtures if mixture.fused is None and not mixture.listed]
    trained = fused or [each.name for mixture in mixtures for each in mixture.listed]
    logger.warning(
        "The model is a mixture of experts. Beside the linear layers the adapter trains %s, of all %d experts of %d "
        "blocks, each with a rank of %d of its own; what routes tokens stays as it is (%s).%s",
        _listed(trained) if trained else "no experts",
        max(mixture.count for mixture in mixtures),
        len(mixtures),
        config.r,
        _listed(routers) or "none was found",
        f" Weights of experts that could not be told, and stay: {_listed(unknown)}." if unknown else "",
    )
    return config


def mixtures_of(model: nn.Module | None) -> list[Mixture]:
    """The mixtures of experts in a model, block by block; of one whose blocks cannot be told, none."""
    if model is None:
        return []
    try:
        parts = find_architecture(model)
    except ArchitectureError as error:
        logger.info("whether it has experts is not known: %s", error)
        return []
    found = (parts.mixture(layer) for layer in range(len(parts.blocks)))
    return [mixture for mixture in found if mixture is not None]


def _skeleton(name: str, init_kwargs: dict[str, Any]) -> nn.Module | None:
    """The model without weights, as TRL will load it; ``None`` where it cannot be: loading it says why."""
    try:
        trust = bool(init_kwargs.get("trust_remote_code", False))
        config = AutoConfig.from_pretrained(name, revision=init_kwargs.get("revision"), trust_remote_code=trust)
        kind = getattr(transformers, (config.architectures or [""])[0], None)
        with torch.device("meta"):
            if kind is None:
                return AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
            model: nn.Module = kind(config)
            return model
    except Exception:  # of whatever kind: remote code runs here
        logger.debug("no skeleton of %s", name, exc_info=True)
        return None


def _useless(model: nn.Module) -> list[str]:
    """Patterns of the names of linear maps that no adapter is to be put on: outside the text decoder, or refused."""
    config: Any = getattr(model, "config", None)
    refused = _REFUSED.get(getattr(config, "model_type", ""))
    patterns = [] if refused is None else [rf"(.*\.)?{refused}"]
    try:
        parts = find_architecture(model)
    except ArchitectureError:
        return patterns
    within = parts.blocks[0].name.rpartition(".")[0].rpartition(".")[0]
    outside = {
        _outermost(name, within): None
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not parts.head.module
        if not name.startswith(f"{within}.")
    }
    if outside:
        logger.info("No adapter is put on what text does not reach: %s.", _listed(list(outside)))
    return [*patterns, *(rf"{re.escape(name)}(\..*)?" for name in outside)]


def _outermost(name: str, within: str) -> str:
    """The largest part that has the module of this name and not the one called ``within``."""
    parts = name.split(".")
    prefixes = [".".join(parts[: n + 1]) for n in range(len(parts))]
    return next(prefix for prefix in prefixes if not f"{within}.".startswith(f"{prefix}."))


def _excluding(config: LoraConfig, patterns: list[str]) -> LoraConfig:
    if not patterns:
        return config
    given = config.exclude_modules or []
    named = [given] if isinstance(given, str) else [rf"(.*\.)?{re.escape(name)}" for name in given]
    config = copy.deepcopy(config)
    config.exclude_modules = "|".join(f"(?:{pattern})" for pattern in [*patterns, *named])
    return config


def _is_all_linear(config: LoraConfig) -> bool:
    return isinstance(config.target_modules, str) and config.target_modules.lower() == "all-linear"


def _is_target(config: LoraConfig, name: str) -> bool:
    named = any(f"{name}.weight".endswith(f".{target}") for target in config.target_parameters or [])
    return named or _matches(config.target_modules, name)


def _matches(targets: str | Iterable[str] | None, name: str) -> bool:
    """As PEFT matches names: a text as a whole, others by endings."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets or [])


def _linear_layers(
    model: PreTrainedModel, routers: Sequence[str], excluded: str | Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """What ``all-linear`` is meant to be, by the ends of names: modules, and the weights of those that PEFT would take
    for experts by their names and not find."""
    head = model.get_output_embeddings()
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and name not in routers
    ]
    names = [name for name in names if not _matches(excluded, name)]
    modules = {_without_number(name) for name in names if name.rpartition(".")[2] not in _TAKEN_FOR_EXPERTS}
    weights = {f"{_without_number(name)}.weight" for name in names if name.rpartition(".")[2] in _TAKEN_FOR_EXPERTS}
    return sorted(modules), sorted(weights)


def _check_fused(config: LoraConfig, name: str) -> None:
    wrong = [
        setting
        for setting, asked in (
            (f"lora_dropout={config.lora_dropout}", config.lora_dropout > 0),
            ("use_dora=True", config.use_dora),
            ("lora_bias=True", config.lora_bias),
        )
        if asked
    ]
    if wrong:
        raise SettingError(
            f"{' and '.join(wrong)}: the experts of this model are fused weights ({name}), and PEFT has no such "
            "adapters. Leave it out, or name `target_modules` without experts."
        )


def _without_number(name: str) -> str:
    """The name behind the block's number, which is the same in every block."""
    return re.split(r"\.\d+\.", name, maxsplit=1)[-1]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
