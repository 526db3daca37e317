"""What is refused, and that the message says what to do."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import IA3Config, PeftModel
from transformers import LlamaForCausalLM
from trl import DPOConfig

from corsa_plugins.corsa import NonFiniteGradientError
from tests.trl_ext.conftest import MakeTrainer, flat, lora, preference_rows, trained_adapter
from trl_ext import CoRSAConfig, CoRSATrainer


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"dpo_weight": -0.1}, "dpo_weight is -0.1: it must be a number of at least 0"),
        ({"dpo_weight": float("inf")}, "dpo_weight is inf: it must be a finite number"),
        ({"sam_rho": -1.0}, "sam_rho is -1.0: it must be a number of at least 0"),
        ({"sam_rho": float("nan")}, "sam_rho is nan: it must be a finite number"),
        ({"sam_eps": 0.0}, "sam_eps is 0.0: it must be a number over 0"),
        ({"beta": 0.0}, "beta is 0.0: it must be a number over 0"),
        ({"beta": float("nan")}, "beta is nan: it must be a finite number"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number"),
        ({"pcgrad_form": "random"}, "pcgrad_form is 'random': it must be one of sequential, simultaneous"),
        ({"reference": "policy"}, "reference must be one of base, adapter"),
        ({"loss_type": ["sigmoid", "sft"]}, "CoRSA adds the SFT loss itself"),
        ({"loss_type": "sft"}, "CoRSA adds the SFT loss itself"),
        ({"fp16": True, "bf16": False}, "Use bf16=True"),
        ({"gradient_checkpointing_kwargs": {"use_reentrant": True}}, "Set 'use_reentrant' to False"),
        ({"optim": "lomo"}, "steps inside the backward pass"),
        ({"optim": "galore_adamw_layerwise"}, "steps inside the backward pass"),
        ({"torch_compile": True}, "torch_compile=True is not supported"),
        ({"router_aux_loss_coef": 0.1}, "router_aux_loss_coef must be 0.0"),
        ({"deepspeed": {"zero_optimization": {"stage": 3}}}, "use plain data parallelism"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_settings(tmp_path: Path, setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CoRSAConfig(str(tmp_path), **({"use_cpu": True} | setting))


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
    tiny_llama.add_adapter(lora())
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


def rows_with(**changes: Any) -> Dataset:
    rows = preference_rows()
    rows[5] |= changes
    return Dataset.from_list(rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rejected": None}, "row 5: `rejected` is missing"),
        ({"rejected": ""}, "row 5: `rejected` is empty"),
        ({"chosen": "  "}, "row 5: `chosen` is empty"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_rows_without_an_answer(
    make_trainer: MakeTrainer, changes: dict[str, Any], message: str, streamed: bool
) -> None:
    dataset = rows_with(**changes)
    if streamed:
        dataset = dataset.to_iterable_dataset()
    with pytest.raises(ValueError, match=message):
        make_trainer(train_dataset=dataset, precompute_ref_log_probs=not streamed).train()


def test_an_empty_turn_in_a_conversation(make_trainer: MakeTrainer) -> None:
    rows = preference_rows(conversational=True)
    rows[2]["chosen"] = [{"role": "assistant", "content": " "}]
    with pytest.raises(ValueError, match="row 2: `chosen` is empty"):
        make_trainer(train_dataset=Dataset.from_list(rows))


def test_a_data_set_without_the_column(make_trainer: MakeTrainer, dataset: Dataset) -> None:
    with pytest.raises(ValueError, match=r"has no column `rejected` \(columns: prompt, chosen\).*fill_target_old"):
        make_trainer(train_dataset=dataset.remove_columns("rejected"))


def test_prompts_that_leave_no_room(make_trainer: MakeTrainer) -> None:
    with pytest.raises(ValueError, match="Raise `max_length`"):
        make_trainer(max_length=3)


def test_the_same_answer_twice_is_warned_of(make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture) -> None:
    rows = preference_rows()
    rows[1]["rejected"] = rows[1]["chosen"]
    make_trainer(train_dataset=Dataset.from_list(rows))
    assert "1 rows of the train data set have the same new and outdated answer (first: row 1)" in caplog.text


@pytest.mark.parametrize("call", [1, 2], ids=["first-half", "second-half"])
def test_nan_gradients_name_the_step_and_leave_the_parameters(
    make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM, call: int
) -> None:
    trainer = make_trainer(model=trained_adapter(tiny_llama), max_steps=3, gradient_accumulation_steps=1)
    after_first = []
    forwards = 0

    def poison(_module: Any, _inputs: Any, output: Any) -> Any:
        nonlocal forwards
        forwards += 1
        if forwards == 2 + call:  # a step is two forwards; poison one half of the second
            output.last_hidden_state = output.last_hidden_state * torch.nan
        if forwards == 3:
            after_first.append(flat(trainer._parameters))
        return output

    trainer.model.get_base_model().model.register_forward_hook(poison)
    with pytest.raises(NonFiniteGradientError, match=r"in step 2\. The parameters are as they were after step 1"):
        trainer.train()
    assert torch.equal(flat(trainer._parameters), after_first[0])


def test_ctrl_c_in_the_middle_of_a_step_leaves_the_parameters(
    make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM
) -> None:
    trainer = make_trainer(model=trained_adapter(tiny_llama), gradient_accumulation_steps=1)
    before = flat(trainer._parameters)
    forwards = 0

    def interrupt(*_: Any) -> None:
        nonlocal forwards
        forwards += 1
        if forwards == 2:  # the parameters stand at the perturbed point
            assert not torch.equal(flat(trainer._parameters), before)
            raise KeyboardInterrupt

    trainer.model.get_base_model().model.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert torch.equal(flat(trainer._parameters), before)
