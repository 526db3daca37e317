"""A model with two adapters."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def adapters(tiny_llama):
    """A model with two adapters that say different things."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    model = peft.get_peft_model(tiny_llama, config, adapter_name="capitals")
    model.add_adapter("people", config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.5)
    return model
