"""Activation checkpointing under the names that the transformers at hand has for it.

Older releases call it gradient checkpointing, and newer ones take that with a warning until version 6. The old names
work with all of them, so they are what our own settings and examples use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import nn
from transformers import TrainingArguments

__all__ = ["RENAMED", "adopt", "checkpointing", "disable", "under_current_names"]

_OLD = ("gradient_checkpointing", "gradient_checkpointing_kwargs")
_NEW = tuple(name.replace("gradient", "activation") for name in _OLD)
_IS_RENAMED = set(_NEW) <= {field.name for field in fields(TrainingArguments)}

RENAMED: Mapping[str, str] = dict(zip(_OLD, _NEW, strict=True)) if _IS_RENAMED else {}
"""Old names to new ones; empty with a transformers that has the old ones alone."""


def under_current_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings for a configuration of TRL's or transformers', under names that give no warning."""
    return {RENAMED.get(name, name): value for name, value in settings.items()}


def adopt(config: TrainingArguments) -> None:
    """Give a configuration, before transformers has looked at it, what it says under old names under the new ones.

    What it says under a new name stands.
    """
    for old, new in RENAMED.items():
        if getattr(config, new) is None:
            setattr(config, new, getattr(config, old))


def checkpointing(model: nn.Module) -> bool:
    """Whether any part of a model recomputes its activations."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def disable(model: Any) -> None:
    """Have a model of transformers' keep its activations again."""
    if hasattr(model, "activation_checkpointing_disable"):
        model.activation_checkpointing_disable()
    else:
        model.gradient_checkpointing_disable()
