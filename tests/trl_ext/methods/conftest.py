"""The three methods with settings for a tiny model, and what a model is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.trl_ext.conftest import lora
from trl_ext.methods import AdapterSettings, corsa, f_learning, lora_sft

QUICK: dict[str, Any] = {"max_new_tokens": 5, "progress": False}
SETTINGS = AdapterSettings(
    {
        "num_train_epochs": 1,
        "learning_rate": 2e-2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
    },
    lora(),
)
METHODS: dict[str, Callable[[], Any]] = {
    "lora-sft": lambda: lora_sft(SETTINGS),
    "corsa": lambda: corsa(SETTINGS),
    "f-learning": lambda: f_learning(SETTINGS, forgetting_rate=0.2),
}


def facts_of(model: Any) -> dict[str, Any]:
    """What a model is: the values of its weights, its modules, flags and modes."""
    return {
        "modules": [(name, type(module), module.training) for name, module in model.named_modules()],
        "flags": [(name, p.requires_grad, p.grad) for name, p in model.named_parameters()],
        "own": sorted(vars(model)),
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
    }


def is_as(model: Any, before: dict[str, Any]) -> bool:
    now = facts_of(model)
    mine, theirs = now.pop("weights"), before["weights"]
    same = mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    return same and now == {name: value for name, value in before.items() if name != "weights"}
