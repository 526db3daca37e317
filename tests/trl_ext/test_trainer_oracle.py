"""The trainer against Algorithm 1 written out literally in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from tests.oracles import corsa as oracle
from tests.trl_ext.conftest import MakeTrainer, flat, preference_rows, trained_adapter


def conflicting_rows() -> list[dict[str, str]]:
    """The outdated answer repeats the new one: suppressing it goes against learning it."""
    return [row | {"rejected": row["chosen"] * 4} for row in preference_rows()]


def gpt2(vocabulary: int) -> GPT2LMHeadModel:
    """It computes in float64 throughout when asked to; Llama's norms and rotary angles stay float32."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=2, n_positions=128, initializer_range=0.2,
        bos_token_id=0, eos_token_id=1, pad_token_id=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def compare(
    make_trainer: MakeTrainer,
    base: PreTrainedModel,
    *,
    dtype: torch.dtype = torch.float64,
    optim: str = "sgd",
    steps: int = 1,
    accumulation: int = 1,
    conflicting: bool = False,
    settings: oracle.Settings | None = None,
    **config: Any,
) -> tuple[float, list[dict[str, float]]]:
    """Train both from the same start; the relative distance of their *updates*, and the trainer's log.

    The update, not the parameters: these hardly move, and a bound relative to them would hide an error.
    """
    settings = settings or oracle.Settings()
    model = trained_adapter(copy.deepcopy(base).to(dtype))
    twin = copy.deepcopy(model).double()
    rows = conflicting_rows() if conflicting else preference_rows()
    rate = 0.05 if optim == "sgd" else 1e-3
    ours = {
        "dpo_weight": settings.dpo_weight,
        "beta": settings.beta,
        "sam_rho": settings.rho,
        "pcgrad": settings.pcgrad,
        "pcgrad_form": settings.form,
    }
    trainer = make_trainer(
        model=model,
        train_dataset=Dataset.from_list(rows),
        optim=optim,
        learning_rate=rate,
        max_steps=steps,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=0.0,
        **(ours | config),
    )
    prepared = [dict(row) for row in trainer.train_dataset]
    start = flat(trainer._parameters)
    trainer.train()

    phi = [p for p in twin.parameters() if p.requires_grad]
    optimizer = (
        torch.optim.SGD(phi, lr=rate) if optim == "sgd" else torch.optim.AdamW(phi, lr=rate, weight_decay=0.0, eps=1e-8)
    )
    micro = [prepared[i : i + 2] for i in range(0, len(prepared), 2)]
    per_epoch = [micro[i : i + accumulation] for i in range(0, len(micro), accumulation)]
    oracle.train(twin, [per_epoch[i % len(per_epoch)] for i in range(steps)], phi, optimizer, settings)

    moved = flat(phi) - start
    assert moved.norm() > 0
    distance = (flat(trainer._parameters) - flat(phi)).norm() / moved.norm()
    return float(distance), [entry for entry in trainer.state.log_history if "sft_loss" in entry]


# The reference log-probabilities travel through the data set in float32, which is 1e-7 of the DPO gradient; Adam
# divides by the gradient's own size and so magnifies that in entries where it nearly vanishes.
FLOAT64 = 1e-6
EXACT = 1e-10  # without that detour
FLOAT32_NORMS = 1e-5
FLOAT32 = 1e-4


@pytest.fixture
def base(tiny_tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    return gpt2(len(tiny_tokenizer))


@pytest.mark.parametrize(
    ("optim", "steps", "accumulation"),
    # Either with several micro-batches to a step and without; an optimizer has a state from its second step on.
    [("sgd", 1, 1), ("sgd", 2, 4), ("adamw_torch", 1, 4), ("adamw_torch", 5, 1)],
)
def test_agrees_in_float64(
    make_trainer: MakeTrainer, base: GPT2LMHeadModel, optim: str, steps: int, accumulation: int
) -> None:
    distance, _ = compare(make_trainer, base, optim=optim, steps=steps, accumulation=accumulation)
    assert distance < FLOAT64


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_on_llama(
    make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM, optim: str, dtype: torch.dtype
) -> None:
    distance, _ = compare(make_trainer, tiny_llama, dtype=dtype, optim=optim, steps=2, accumulation=2)
    assert distance < (FLOAT32 if dtype == torch.float32 else FLOAT32_NORMS)


@pytest.mark.parametrize("form", ["sequential", "simultaneous"])
@pytest.mark.parametrize("conflicting", [False, True], ids=["agreeing", "conflicting"])
@pytest.mark.parametrize("one_backward", [True, False], ids=["one-backward", "two-backwards"])
def test_agrees_for_both_pcgrad_forms(
    make_trainer: MakeTrainer, base: GPT2LMHeadModel, form: str, conflicting: bool, one_backward: bool
) -> None:
    distance, log = compare(
        make_trainer,
        base,
        steps=2,
        conflicting=conflicting,
        settings=oracle.Settings(form=form),
        one_backward=one_backward,
    )
    assert distance < FLOAT64
    conflicts = {entry["gradients/conflict"] for entry in log}
    assert conflicts == ({1.0} if conflicting else {0.0})  # the case is the one it says


def test_the_pcgrad_forms_differ_where_gradients_conflict(make_trainer: MakeTrainer, base: GPT2LMHeadModel) -> None:
    """Else the test above could not tell them apart."""
    other, _ = compare(
        make_trainer, base, conflicting=True, settings=oracle.Settings(form="simultaneous"), pcgrad_form="sequential"
    )
    assert other > 1e-3


@pytest.mark.parametrize(
    "settings",
    [
        oracle.Settings(rho=0.0),
        oracle.Settings(dpo_weight=0.0),
        oracle.Settings(pcgrad=False),
        oracle.Settings(rho=0.0, dpo_weight=0.0),
        oracle.Settings(rho=0.0, pcgrad=False),
        oracle.Settings(dpo_weight=2.5, beta=0.3, rho=0.5),
    ],
    ids=["no-sam", "no-dpo", "no-pcgrad", "sft-alone", "sum-alone", "other-values"],
)
def test_every_part_can_be_switched_off_alone(
    make_trainer: MakeTrainer, base: GPT2LMHeadModel, settings: oracle.Settings
) -> None:
    distance, log = compare(
        make_trainer, base, steps=3, conflicting=True, settings=settings, precompute_ref_log_probs=False
    )
    assert distance < EXACT
    assert all((entry["sam/perturbation_norm"] > 0) == (settings.rho > 0) for entry in log)


def test_reference_log_probabilities_on_the_fly_change_nothing(
    make_trainer: MakeTrainer, base: GPT2LMHeadModel
) -> None:
    distance, _ = compare(make_trainer, base, steps=2, precompute_ref_log_probs=False)
    assert distance < EXACT


def test_clipping_and_the_schedule_stay_the_trainers_own(make_trainer: MakeTrainer, base: GPT2LMHeadModel) -> None:
    """``max_grad_norm`` scales the update of Algorithm 1 to that norm, and does nothing else."""
    whole = trained_adapter(copy.deepcopy(base).double())
    clipped = copy.deepcopy(whole)
    updates = []
    for model, limit in ((whole, 0.0), (clipped, 0.01)):
        trainer = make_trainer(model=model, optim="sgd", max_steps=1, max_grad_norm=limit, learning_rate=1.0)
        start = flat(trainer._parameters)
        trainer.train()
        updates.append(flat(trainer._parameters) - start)
    assert updates[0].norm() > 0.01
    torch.testing.assert_close(updates[1], updates[0] * 0.01 / updates[0].norm(), rtol=1e-4, atol=0)
