"""A step's plumbing: two looks at the same batch, parameters that come back, and an update for the optimizer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import (
    LlamaForCausalLM,
)

from corsa_plugins.corsa import NonFiniteGradientError
from tests.trl_ext.conftest import MakeTrainer, flat, trained_adapter
from trl_ext.step import (
    accumulate,
    average_over_processes,
    chosen_rows,
    completion_mask,
    is_noisy,
    labels,
    lora_parameters,
    model_inputs,
    sft_of_rows,
)


def a_batch() -> dict[str, Any]:
    ids = torch.arange(12).reshape(4, 3)
    mask = torch.tensor([[0, 1, 1], [0, 0, 1], [0, 1, 0], [0, 1, 1]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": mask, "ref_chosen_logps": [1]}


def test_a_batch_goes_to_the_model_without_what_belongs_to_the_losses() -> None:
    batch = a_batch()
    assert model_inputs(batch).keys() == {"input_ids", "attention_mask", "use_cache"}
    marked = labels(batch)
    assert torch.equal(marked != -100, batch["completion_mask"] == 1)
    assert torch.equal(marked[:, 1:] != -100, completion_mask(batch) == 1)
    assert set(batch) == {"input_ids", "attention_mask", "completion_mask", "ref_chosen_logps"}


def test_the_chosen_rows_alone_have_the_loss_they_have_among_the_others() -> None:
    batch = a_batch()
    chosen = chosen_rows(batch)
    assert torch.equal(chosen["input_ids"], batch["input_ids"][:2])
    assert chosen["ref_chosen_logps"] == [1]  # no tensor of rows
    log_probs = -torch.rand(4, 2, generator=torch.Generator().manual_seed(0))
    whole = sft_of_rows(log_probs, completion_mask(batch), paired=True)
    assert torch.equal(sft_of_rows(log_probs[:2], completion_mask(chosen), paired=False), whole)


def test_updates_add_up_to_their_mean_and_stay_it_on_a_single_process() -> None:
    parameters = [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(()))]
    draw = torch.Generator().manual_seed(0)
    updates = [[torch.randn(p.shape, generator=draw) for p in parameters] for _ in range(4)]
    for update in updates:
        accumulate(parameters, [tensor.clone() for tensor in update], 0.25)
    means = [torch.stack(tensors).mean(dim=0) for tensors in zip(*updates, strict=True)]
    for parameter, mean in zip(parameters, means, strict=True):
        torch.testing.assert_close(parameter.grad, mean)
    before = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
    average_over_processes(parameters, Accelerator())
    assert all(torch.equal(p.grad, grad) for p, grad in zip(parameters, before, strict=True) if p.grad is not None)


def test_what_trains_is_raised_to_float32_and_nothing_else() -> None:
    half, fine, frozen = nn.Linear(2, 2, dtype=torch.bfloat16), nn.Linear(2, 2).double(), nn.Linear(2, 2).bfloat16()
    frozen.requires_grad_(False)
    parameters = lora_parameters(nn.Sequential(half, fine, frozen))
    assert [id(parameter) for parameter in parameters] == [id(p) for p in (*half.parameters(), *fine.parameters())]
    assert [parameter.dtype for parameter in parameters] == [torch.float32] * 2 + [torch.float64] * 2
    assert frozen.weight.dtype == torch.bfloat16


def test_noise_is_dropout_that_is_on_or_neftunes() -> None:
    assert is_noisy(nn.Sequential(nn.Dropout(0.1)), None)
    assert is_noisy(nn.Sequential(nn.Dropout(0.0)), 5.0)
    assert not is_noisy(nn.Sequential(nn.Dropout(0.0)), None)


# --- Through the trainer ---


def test_one_forward_per_half_step_and_reference_run_once_before_training(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(max_steps=4, gradient_accumulation_steps=1)
    calls: list[int] = []
    trainer.model.get_base_model().model.register_forward_hook(lambda *_: calls.append(1))
    trainer.train()
    assert len(calls) == 4 * 2
    assert {"ref_chosen_logps", "ref_rejected_logps"} <= set(trainer.train_dataset.column_names)


def test_without_sam_a_step_is_one_forward_and_without_dpo_the_rejected_rows_stay_out(
    make_trainer: MakeTrainer,
) -> None:
    trainer = make_trainer(max_steps=4, gradient_accumulation_steps=1, sam_rho=0.0, dpo_weight=0.0)
    rows: list[int] = []
    trainer.model.get_base_model().model.register_forward_hook(
        lambda _m, _a, kwargs, _o: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    trainer.train()
    assert rows == [2] * 4


def test_sam_comes_late_and_in_some_steps_where_it_is_set_so(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(max_steps=6, gradient_accumulation_steps=2, sam_start=0.3, sam_interval=3)
    looks: list[int] = []
    trainer.model.get_base_model().model.register_forward_hook(lambda *_: looks.append(trainer.state.global_step))
    trainer.train()
    assert [looks.count(step) for step in range(6)] == [2, 2, 4, 2, 2, 4]
    norms = [entry["sam/perturbation_norm"] for entry in trainer.state.log_history if "sft_loss" in entry]
    assert [norm > 0 for norm in norms] == [False, False, True, False, False, True]


def test_tokens_are_counted_once_although_a_step_looks_twice(make_trainer: MakeTrainer) -> None:
    counts = []
    for rho in (0.0, 0.05):
        trainer = make_trainer(sam_rho=rho, max_steps=3)
        trainer.train()
        counts.append(trainer._total_train_tokens)
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("source", ["dropout", "neftune"])
def test_noise_is_the_same_in_both_looks_of_a_step(
    make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM, source: str
) -> None:
    """With a radius of almost nothing the second look is the first, noise and all."""
    updates = []
    for rho in (0.0, 1e-9):
        settings: dict[str, Any] = {"neftune_noise_alpha": 5.0} if source == "neftune" else {"disable_dropout": False}
        trainer = make_trainer(
            model=trained_adapter(copy.deepcopy(tiny_llama).double(), lora_dropout=0.3 * (source == "dropout")),
            sam_rho=rho,
            optim="sgd",
            max_steps=1,
            gradient_accumulation_steps=1,
            **settings,
        )
        start = flat(trainer._parameters)
        trainer.train()
        updates.append(flat(trainer._parameters) - start)
    torch.testing.assert_close(updates[0], updates[1], rtol=1e-4, atol=1e-6)


def test_sam_reaches_through_an_autocast_around_the_training(
    make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM
) -> None:
    updates = []
    for rho in (0.0, 1.0):
        trainer = make_trainer(
            model=trained_adapter(copy.deepcopy(tiny_llama)), sam_rho=rho, optim="sgd", one_backward=False, max_steps=1
        )
        start = flat(trainer._parameters)
        with torch.autocast("cpu", torch.bfloat16):
            trainer.train()
        updates.append(flat(trainer._parameters) - start)
    assert (updates[0] - updates[1]).norm() > 0.1 * updates[0].norm()


def test_a_bfloat16_adapter_is_raised_to_float32(make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM) -> None:
    """As TRL leaves those of 4-bit models; a perturbation would vanish in its rounding."""
    model = trained_adapter(tiny_llama)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    trainer = make_trainer(model=model)
    trainer.train()
    assert {p.dtype for p in trainer._parameters} == {torch.float32}


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
