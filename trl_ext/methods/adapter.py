"""A model's LoRA layers, and the model as it was before it had any."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from corsa_plugins.model.borrowing import remember_gradient_flags, remember_modes
from trl_ext._trl import TRAINED, BaseTunerLayer, disable_input_gradients
from trl_ext.activations import checkpointing, disable
from trl_ext.head import remove_completion_head

__all__ = ["Unadapted", "lora_factors", "lora_layers"]


class Unadapted:
    """A model's modules, flags and forward, as they were; the values of its weights are not among them.

    PEFT puts layers of its own in the place of linear ones, which it leaves as they are. Putting the old modules back
    takes any adapter off, also one that was put on only in part.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.children = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
        self._put_back_flags = remember_gradient_flags(model)
        self._put_back_modes = remember_modes(model)
        self.attributes = {name: vars(model).get(name) for name in ("forward", "peft_config", "model_tags")}
        self.use_cache = getattr(model.config, "use_cache", None)
        self.checkpointing = checkpointing(model)

    def put_back(self) -> None:
        model: Any = self.model
        remove_completion_head(model)
        for parent, name, child in self.children:
            if getattr(parent, name) is not child:
                setattr(parent, name, child)
        for name, value in self.attributes.items():
            if value is not None:
                setattr(model, name, value)
            elif name in vars(model):
                delattr(model, name)
        disable_input_gradients(model)
        if not self.checkpointing and checkpointing(model):
            disable(model)
        if self.use_cache is not None:
            model.config.use_cache = self.use_cache
        self._put_back_flags()
        self._put_back_modes()
        for parameter in model.parameters():
            parameter.grad = None


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """The LoRA layers of a model by name, with the adapter that is trained."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer) and TRAINED in getattr(module, "lora_A", {})
    }


def lora_factors(model: nn.Module) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Copies of each LoRA layer's (s B, A) in float32, in main memory: its change of the weight is their product."""
    return {
        name: (
            layer.lora_B[TRAINED].weight.detach().to("cpu", torch.float32) * layer.scaling[TRAINED],
            layer.lora_A[TRAINED].weight.detach().to("cpu", torch.float32, copy=True),
        )
        for name, layer in lora_layers(model).items()
    }
