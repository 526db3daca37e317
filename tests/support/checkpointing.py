"""Activation checkpointing of a model, under the name that the transformers at hand has for it."""

from __future__ import annotations

from typing import Any


def enable(model: Any, **settings: Any) -> None:
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings or None)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings or None)
