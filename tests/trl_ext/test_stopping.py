"""A training that knows which facts are learned: they push no more, and it ends when all are."""

from __future__ import annotations

import copy
import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import LlamaForCausalLM

from corsa_plugins.errors import SettingError
from tests.oracles import corsa as oracle
from tests.trl_ext.conftest import MakeTrainer, flat, lora, preference_rows, trained_adapter

FEW = Dataset.from_list(preference_rows()[:3])
FAST = {
    "learned_at": 0.02, "num_train_epochs": 40, "max_steps": -1, "learning_rate": 1e-2, "sam_rho": 0.0,
    "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "train_dataset": FEW,
}  # fmt: skip
"""Two steps an epoch, and all is learned in a few of them."""


def completions(trainer: Any, name: str = "chosen") -> list[float]:
    """log p of each row's answer, one row at a time."""
    with torch.no_grad():
        rows = [(row["prompt_ids"], row[f"{name}_ids"]) for row in trainer.train_dataset]
        return [float(oracle.answer_log_probs(trainer.model.eval(), *row).sum()) for row in rows]


def between(values: list[float]) -> float:
    """A probability that lies in the widest gap of these log-probabilities."""
    gaps = [(b - a, (a + b) / 2) for a, b in pairwise(sorted(values))]
    return float(torch.tensor(max(gaps)[1]).exp())


def test_the_update_is_the_gradient_of_the_facts_that_are_not_learned(
    make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM
) -> None:
    """Both losses keep their own normalisation: what is learned leaves the sum, not the count."""
    model = trained_adapter(tiny_llama.double())
    level = between(completions(make_trainer(model=copy.deepcopy(model))))
    trainer = make_trainer(
        model=model, optim="sgd", learning_rate=1.0, max_steps=1, gradient_accumulation_steps=1, max_grad_norm=0.0,
        per_device_train_batch_size=8, sam_rho=0.0, pcgrad=False, learned_at=level,
    )  # fmt: skip
    rows, phi = [dict(row) for row in trainer.train_dataset], trainer._parameters
    values = zip(completions(trainer), completions(trainer, "rejected"), strict=True)
    least = float(torch.tensor(level).log())
    live = [row for row, (new, old) in zip(rows, values, strict=True) if new < least or new < old]
    assert 0 < len(live) < len(rows)
    tokens = sum(len(row["chosen_ids"]) for row in rows)
    live_tokens = sum(len(row["chosen_ids"]) for row in live)
    loss = oracle.sft_loss(trainer.model, live) * live_tokens / tokens
    loss = loss + oracle.dpo_loss(trainer.model, live, 0.1) * len(live) / len(rows)
    expected = oracle.flat_gradient(loss, phi)
    start = flat(phi)
    trainer.train()
    assert (flat(phi) - start + expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("dpo_weight", [0.0, 1.0])
def test_it_ends_after_the_epoch_that_all_are_learned_in(make_trainer: MakeTrainer, dpo_weight: float) -> None:
    trainer = make_trainer(dpo_weight=dpo_weight, learned_margin=1.0, **FAST)
    assert trainer.learned is None
    trainer.train()
    assert trainer.learned is not None
    assert 0 < trainer.state.global_step < trainer.state.max_steps
    assert trainer.state.global_step % 2 == 0  # two steps an epoch
    counts = [entry["facts_learned"] for entry in trainer.state.log_history if "facts_learned" in entry]
    assert counts[-1] == 3 > max(counts[:-1])
    own = completions(trainer)
    assert min(own) >= float(torch.tensor(0.02).log()) - 1e-4
    torch.testing.assert_close(list(trainer.learned.log_probs), own, rtol=1e-3, atol=1e-4)


def test_it_says_which_facts_were_not_learned(make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make_trainer(learned_at=0.99, learning_rate=1e-6)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    (told,) = [record.message for record in caplog.records if "facts learned" in record.message]
    assert told.startswith("0 of 8 facts learned in 2 steps (p(new) >= 0.99); not 'The capital of Avaria is' (log p -")
    assert told.endswith("and 3 more: raise num_train_epochs or learning_rate, or lower learned_at")


def test_looking_changes_nothing(make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM) -> None:
    """A level that nothing reaches: the training is bit for bit the paper's, its order and dropout included."""
    model = trained_adapter(tiny_llama, lora_dropout=0.2)
    settings = {"max_steps": 6, "train_sampling_strategy": "random"}
    plain, watched = (make_trainer(model=copy.deepcopy(model), learned_at=at, **settings) for at in (0.0, 1.0))
    plain.train()
    watched.train()
    assert torch.equal(flat(plain._parameters), flat(watched._parameters))


def test_resuming_ends_where_an_unbroken_run_does(
    make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = get_peft_model(tiny_llama, lora())
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, "train_sampling_strategy": "random", **FAST}
    runs = [
        make_trainer(model=copy.deepcopy(model), output_dir=str(tmp_path / name), **settings)
        for name in ("whole", "again")
    ]
    runs[0].train()
    runs[1].train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert 3 < runs[0].state.global_step == runs[1].state.global_step < runs[0].state.max_steps
    assert torch.equal(flat(runs[0]._parameters), flat(runs[1]._parameters))


def test_a_streamed_data_set_is_refused(make_trainer: MakeTrainer) -> None:
    streamed = Dataset.from_list(preference_rows()).to_iterable_dataset()
    with pytest.raises(SettingError, match=r"learned_at=0\.9 needs to read the training data set"):
        make_trainer(train_dataset=streamed, precompute_ref_log_probs=False, learned_at=0.9)
