"""A model without its adapter is as it was, and an adapter's factors are its change of the weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import LlamaForCausalLM

from tests.trl_ext.conftest import MakeTrainer, lora, trained_adapter
from tests.trl_ext.methods.conftest import facts_of, is_as
from trl_ext.activations import checkpointing as is_checkpointing
from trl_ext.methods.adapter import Unadapted, lora_factors, lora_layers


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_trainer_and_its_adapter_leave_nothing_behind(
    make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM, checkpointing: bool
) -> None:
    before, use_cache = facts_of(tiny_llama), tiny_llama.config.use_cache
    unadapted = Unadapted(tiny_llama)
    make_trainer(model=tiny_llama, gradient_checkpointing=checkpointing).train()
    assert not is_as(tiny_llama, before)
    unadapted.put_back()
    assert is_as(tiny_llama, before)
    assert tiny_llama.config.use_cache == use_cache
    assert not is_checkpointing(tiny_llama)
    embedded: Any = tiny_llama.get_input_embeddings()(torch.tensor([[1, 2]]))
    assert not embedded.requires_grad or tiny_llama.get_input_embeddings().weight.requires_grad


def test_weights_that_were_frozen_stay_frozen(tiny_llama: LlamaForCausalLM) -> None:
    tiny_llama.requires_grad_(False)
    unadapted = Unadapted(tiny_llama)
    get_peft_model(tiny_llama, lora(target_modules=["q_proj"]))
    unadapted.put_back()
    assert not lora_layers(tiny_llama)
    assert not any(parameter.requires_grad for parameter in tiny_llama.parameters())


def test_the_product_of_the_factors_is_the_change_that_peft_makes(tiny_llama: LlamaForCausalLM) -> None:
    model = trained_adapter(tiny_llama, target_modules=["q_proj", "down_proj"], use_rslora=True)
    factors = lora_factors(model)
    layers = lora_layers(model)
    assert factors.keys() == layers.keys()
    assert len(factors) == 2 * 2
    for name, (left, right) in factors.items():
        torch.testing.assert_close(left @ right, layers[name].get_delta_weight("default"))
    copies = {name: (left.clone(), right.clone()) for name, (left, right) in factors.items()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.zero_()
    assert all(torch.equal(factors[name][side], copies[name][side]) for name in factors for side in (0, 1))
