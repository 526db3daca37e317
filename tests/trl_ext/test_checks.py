"""What the trainer cannot work with is refused before training, and the message says what to do."""

from __future__ import annotations

import copy
import inspect
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import IA3Config, PeftModel
from transformers import LlamaForCausalLM
from trl import DPOConfig, DPOTrainer

from corsa_plugins.errors import SettingError
from tests.support.placed import in_parts
from tests.trl_ext.conftest import MakeTrainer, lora, trained_adapter
from trl_ext import CoRSAConfig, CoRSATrainer
from trl_ext.checks import LOSSES, warn_of_repeated_rows
from trl_ext.methods import corsa


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"learning_rate": float("nan")}, "learning_rate is nan: it must be a finite number"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0: it must be a number over 0"),
        ({"learning_rate": -1e-4}, "learning_rate is -0.0001: it must be a number over 0"),
        ({"learning_rate": float("inf")}, "learning_rate is inf: it must be a finite number"),
        ({"output_dir": ""}, "output_dir is empty"),
        ({"reference": "policy"}, "reference is 'policy': it must be one of base, adapter"),
        ({"loss_type": ["sigmoid", "sft"]}, "CoRSA adds the SFT loss itself"),
        ({"loss_type": "sft"}, "CoRSA adds the SFT loss itself"),
        ({"fp16": True, "bf16": False}, "Use bf16=True"),
        ({"gradient_checkpointing_kwargs": {"use_reentrant": True}}, "Set 'use_reentrant' to False"),
        ({"pcgrad": "no"}, "pcgrad is 'no': it must be true or false"),
        ({"num_train_epochs": -1}, "no step would be taken"),
        ({"optim": "lomo"}, "steps inside the backward pass"),
        ({"optim": "galore_adamw_layerwise"}, "steps inside the backward pass"),
        ({"torch_compile": True}, "torch_compile=True is not supported"),
        ({"router_aux_loss_coef": 0.1}, "router_aux_loss_coef must be 0.0"),
        ({"deepspeed": {"zero_optimization": {"stage": 3}, "optimizer": {}}}, "optimizer is not supported.* set optim"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_settings_of_trls_that_corsa_cannot_work_with(tmp_path: Path, setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CoRSAConfig(**({"output_dir": str(tmp_path), "use_cpu": True} | setting))


def test_every_loss_of_trl_is_known_and_no_other() -> None:
    source = inspect.getsource(DPOTrainer)
    known = set(re.findall(r'loss_type == "(\w+)"', source))
    assert known == {*LOSSES, "sft"}


def test_rows_that_processes_cannot_share_evenly_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    def warned(rows: int, processes: int, drop: bool = False) -> str:
        caplog.clear()
        args: Any = SimpleNamespace(per_device_train_batch_size=2, world_size=processes, dataloader_drop_last=drop)
        warn_of_repeated_rows(args, rows)
        return caplog.text

    assert "5 rows are no multiple of 2 processes with batches of 2: 3 of them are taken twice" in warned(5, 2)
    assert not warned(8, 2)
    assert not warned(5, 1)
    assert not warned(5, 2, drop=True)


def test_another_trainers_configuration(tiny_llama: LlamaForCausalLM, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="must be a `CoRSAConfig`, got `DPOConfig`"):
        CoRSATrainer(tiny_llama, args=DPOConfig(str(tmp_path), use_cpu=True), train_dataset=dataset)


def test_an_adapter_loaded_frozen(make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM, tmp_path: Path) -> None:
    trained_adapter(copy.deepcopy(tiny_llama)).save_pretrained(tmp_path / "adapter")
    frozen = PeftModel.from_pretrained(tiny_llama, tmp_path / "adapter")
    with pytest.raises(ValueError, match="is_trainable=True"):
        make_trainer(model=frozen)


def test_an_adapter_under_another_name(make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM) -> None:
    model = PeftModel(tiny_llama, lora(), adapter_name="facts")
    with pytest.raises(ValueError, match=r"must be named 'default'"):
        make_trainer(model=model)


def test_trainable_base_weights(make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM) -> None:
    model = trained_adapter(tiny_llama)
    for parameter in model.get_base_model().model.norm.parameters():
        parameter.requires_grad_(True)
    with pytest.raises(ValueError, match=r"Base weights are trainable \(.*norm.weight\)"):
        make_trainer(model=model)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"modules_to_save": ["embed_tokens"]}, "Remove it from your `LoraConfig`"),
        ({"bias": "all"}, "Set it to 'none'"),
        ({"init_lora_weights": "pissa"}, "changes the base weights"),
        ({"target_modules": ["q_proj", "lm_head"]}, "Remove `'lm_head'` from your `target_modules`"),
    ],
    ids=["modules_to_save", "bias", "pissa", "head"],
)
def test_adapters_that_train_more_than_lora(make_trainer: MakeTrainer, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(peft_config=lora(**config))


def test_an_adapter_outside_a_peft_model(make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM) -> None:
    try:
        tiny_llama.add_adapter(lora())
    except ValueError as error:
        pytest.skip(f"this transformers takes no adapter of this PEFT: {error}")
    before = {name: p.clone() for name, p in tiny_llama.named_parameters() if "lora_" in name}
    with pytest.raises(ValueError, match=r"a new one would replace it\. .*PeftModel.from_pretrained"):
        make_trainer(model=tiny_llama)
    assert all(torch.equal(p, before[n]) for n, p in tiny_llama.named_parameters() if n in before)


def test_an_adapter_with_the_name_of_the_reference(make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM) -> None:
    model = trained_adapter(tiny_llama)
    model.add_adapter("ref", lora())
    with pytest.raises(ValueError, match="delete_adapter"):
        make_trainer(model=model)
    assert "ref" in model.peft_config


def test_activation_offloading_where_two_backward_passes_are_needed(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(one_backward=False)
    trainer.args.activation_offloading = True  # TRL's own set-up of it needs an accelerator
    with pytest.raises(ValueError, match="activation_offloading=True cannot be used here"):
        trainer._choose_linearization()


def test_an_adapter_that_is_not_lora(make_trainer: MakeTrainer) -> None:
    with pytest.raises(TypeError, match=r"must be a `peft\.LoraConfig`"):
        make_trainer(peft_config=IA3Config(target_modules=["k_proj"], feedforward_modules=[]))


def test_a_launch_that_cannot_work(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP1 is not supported"):
        make_trainer()
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(ValueError, match="there is one: launch several"):
        make_trainer()


def test_a_model_that_is_refused_is_as_it_was(make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM) -> None:
    model = trained_adapter(tiny_llama)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
        parameter.requires_grad_(parameter.requires_grad or "norm" in name)
    with pytest.raises(ValueError, match="Base weights are trainable"):
        make_trainer(model=model)
    assert {p.dtype for name, p in model.named_parameters() if "lora_" in name} == {torch.bfloat16}
    assert set(model.peft_config) == {"default"}


def test_a_model_that_is_partly_offloaded_is_refused(tiny_llama, tiny_tokenizer, tmp_path):
    parts = in_parts(tiny_llama, tiny_tokenizer, tmp_path / "model")
    with pytest.raises(SettingError, match=r"partly offloaded .* alphaedit\+ or rsft"):
        corsa().start(parts, tiny_tokenizer, seed=0)
    with pytest.raises(SettingError, match="partly offloaded"):
        CoRSATrainer(parts, args=CoRSAConfig(str(tmp_path / "out"), bf16=False))
