"""What is trained: the new answers, by every loss and precision that TRL offers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    LlamaForCausalLM,
)
from trl import DPOConfig, DPOTrainer

from tests.trl_ext.conftest import MakeTrainer, flat, preference_rows, trained_adapter
from trl_ext.activations import under_current_names


def test_it_learns_the_new_answers_and_forgets_the_old(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(max_steps=30, gradient_accumulation_steps=1, per_device_train_batch_size=8)
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "sft_loss" in entry]
    assert log[-1]["sft_loss"] < 0.2 * log[0]["sft_loss"]
    assert log[-1]["margin"] > log[0]["margin"] + 10
    assert log[-1]["rewards/accuracies"] == 1.0


def test_with_everything_off_it_is_lora_sft(make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM) -> None:
    """Step for step what DPOTrainer does with its SFT loss alone."""
    model = trained_adapter(tiny_llama)
    twin = copy.deepcopy(model)
    ours = make_trainer(model=model, dpo_weight=0.0, sam_rho=0.0, max_steps=4)
    ours.train()
    shared = {
        name: getattr(ours.args, name)
        for name in (
            "use_cpu", "bf16", "report_to", "disable_tqdm", "gradient_checkpointing", "per_device_train_batch_size",
            "gradient_accumulation_steps", "max_steps", "learning_rate", "lr_scheduler_type", "train_sampling_strategy",
            "save_strategy",
        )
    }  # fmt: skip
    theirs = DPOTrainer(
        twin,
        args=DPOConfig(f"{ours.args.output_dir}-dpo", loss_type=["sft"], **under_current_names(shared)),
        train_dataset=Dataset.from_list(preference_rows()),
        processing_class=ours.processing_class,
    )
    theirs.train()
    expected = [p for n, p in twin.named_parameters() if ".default." in n]
    torch.testing.assert_close(flat(ours._parameters), flat(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"loss_type": "ipo"}, "OneBackward"),
        ({"loss_type": "hinge"}, "OneBackward"),
        ({"f_divergence_type": "forward_kl"}, "OneBackward"),
        ({"use_weighting": True}, "TwoBackwards"),
        ({"ld_alpha": 0.5}, "TwoBackwards"),
        ({"loss_type": "ipo", "pcgrad": False}, "SummedBackward"),
        ({"ld_alpha": 0.5, "pcgrad": False}, "SummedBackward"),
    ],
    ids=["ipo", "hinge", "f-divergence", "wpo", "ld-dpo", "ipo-summed", "ld-dpo-summed"],
)
def test_trls_other_preference_losses_are_the_ones_trained(
    make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM, settings: dict[str, Any], path: str
) -> None:
    """Without SAM and a conflict the update is minus the gradient of L_sft + L_dpo, as autograd takes it in one go."""
    trainer = make_trainer(
        model=trained_adapter(tiny_llama.double()),
        optim="sgd",
        learning_rate=1.0,
        max_steps=1,
        gradient_accumulation_steps=1,
        max_grad_norm=0.0,
        sam_rho=0.0,
        **settings,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    loss = trainer._compute_loss(trainer.model, batch, return_outputs=False)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, trainer._parameters)])
    start = flat(trainer._parameters)
    trainer.train()
    assert type(trainer._linearization).__name__ == path
    assert trainer.state.log_history[0].get("gradients/conflict", 0) == 0  # the case is the one it says
    distance = (flat(trainer._parameters) - start + expected).norm() / expected.norm()
    assert distance < 1e-4


@pytest.mark.parametrize("one_backward", [True, False])
def test_gradient_checkpointing_changes_nothing(
    make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM, one_backward: bool
) -> None:
    model = trained_adapter(tiny_llama)
    found = []
    for checkpointing in (False, True):
        trainer = make_trainer(
            model=copy.deepcopy(model), gradient_checkpointing=checkpointing, one_backward=one_backward
        )
        trainer.train()
        assert trainer.model.training
        found.append(flat(trainer._parameters))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-7)


def test_bf16_trains_float32_adapters(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(bf16=True, max_steps=30, gradient_accumulation_steps=1, per_device_train_batch_size=8)
    trainer.train()
    assert {p.dtype for p in trainer._parameters} == {torch.float32}
    log = [entry for entry in trainer.state.log_history if "sft_loss" in entry]
    assert log[-1]["sft_loss"] < 0.5 * log[0]["sft_loss"]
    assert log[0]["sam/perturbation_norm"] == pytest.approx(0.05, rel=1e-3)
