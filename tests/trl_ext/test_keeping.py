"""Prompts that are held during a training, and those that are only watched."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.corsa.keeper import Keeper, kept_sentence
from corsa_plugins.corsa.kept import Kept
from corsa_plugins.errors import SettingError
from corsa_plugins.model.tokenization import join
from tests.oracles import corsa as oracle
from tests.trl_ext.conftest import MakeTrainer, flat, trained_adapter

PLAIN = {"optim": "sgd", "max_grad_norm": 0.0, "sam_rho": 0.0, "learning_rate": 1.0, "max_steps": 1}


@pytest.fixture
def kept(tiny_tokenizer: PreTrainedTokenizerFast) -> list[Kept]:
    lands = ("Oz", "Narnia", "Gondor", "Utopia", "Lilliput", "Laputa")
    prompts = [f"The capital of {land} is" for land in lands]
    return [Kept(prompt, join(tiny_tokenizer, prompt, "Rome now")) for prompt in prompts]


def log_probs(model: Any, kept: Kept) -> torch.Tensor:
    """Over the vocabulary at each position of the answer, one row at a time, in float64."""
    prompt, answer = kept.ids
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
    return logits[len(prompt) - 1 : -1]


@pytest.mark.parametrize("tolerance", [1e-4, 1e3])
def test_the_pull_is_added_to_the_update_of_an_optimizer_step(
    make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM, kept: list[Kept], tolerance: float
) -> None:
    """At phi, once, however many micro-batches there are; towards the adapter as it was, not the base model."""
    base = trained_adapter(tiny_llama.double())
    moved = []
    for weight in (0.0, 3.0):
        model = copy.deepcopy(base)
        before = {prompt.prompt: log_probs(model.eval(), prompt).detach() for prompt in kept}
        trainer = make_trainer(model=model, kept=kept, keep_weight=weight, keep_tolerance=tolerance, **PLAIN)
        shift = torch.Generator().manual_seed(1)
        for parameter in trainer._parameters:  # away from the reference, where the divergence and its gradient are 0
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=shift, dtype=torch.float64)
        start = flat(trainer._parameters)
        if weight:
            held = [trainer._keeper.held[index] for index in trainer._keeper.at(0)]  # type: ignore[union-attr]
            assert len(held) == 5
            kl = torch.stack([
                (before[p.prompt].exp() * (before[p.prompt] - log_probs(model.eval(), p))).sum(-1) for p in held
            ]).mean()  # fmt: skip
            pull = weight * max(1.0, float(kl.detach()) / tolerance) * oracle.flat_gradient(kl, trainer._parameters)
        trainer.train()
        moved.append(flat(trainer._parameters) - start)
    assert ((moved[1] - moved[0]) + pull).norm() / pull.norm() < 1e-4
    logged = [entry["kept/divergence"] for entry in trainer.state.log_history if "kept/divergence" in entry]
    assert logged == [pytest.approx(float(kl.detach()), rel=1e-3)]


def test_held_prompts_stay_nearer_to_what_they_were(
    make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM, kept: list[Kept]
) -> None:
    drift, changed = [], []
    for weight in (0.0, 5.0):
        model = trained_adapter(copy.deepcopy(tiny_llama))
        before = [log_probs(model, prompt).detach() for prompt in kept]
        trainer = make_trainer(model=model, kept=kept, keep_weight=weight, max_steps=8)
        trainer.train()
        after = [log_probs(trainer.model.eval(), prompt).detach() for prompt in kept]
        drift.append(float(sum((b.exp() * (b - a)).sum() for b, a in zip(before, after, strict=True))))
        changed.append(trainer.kept_changed())
    assert drift[1] < 0.3 * drift[0]
    assert changed[0] == ([], 0)
    assert changed[1][1] == 1


def test_every_prompt_has_its_turn_and_a_step_is_its_number_alone(
    tiny_llama: LlamaForCausalLM, kept: list[Kept]
) -> None:
    def keeper(seed: int) -> Keeper:
        return Keeper(tiny_llama, kept, size=2, seed=seed, precision=nullcontext)

    one, two = keeper(0), keeper(0)
    assert [prompt.prompt for prompt in one.watched] == [kept[4].prompt]
    steps = [one.at(step) for step in range(10)]
    assert steps == [two.at(step) for step in range(10)] != [keeper(1).at(step) for step in range(10)]
    turns = [index for step in steps for index in step]
    assert all(sorted(turns[i : i + 5]) == [0, 1, 2, 3, 4] for i in range(0, 20, 5))


def test_resuming_gives_what_an_unbroken_run_gives(
    make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM, kept: list[Kept], tmp_path: Path
) -> None:
    model = trained_adapter(tiny_llama)
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "keep_weight": 2.0, "keep_batch_size": 3}
    runs = [
        make_trainer(model=copy.deepcopy(model), kept=kept, output_dir=str(tmp_path / name), **settings)
        for name in ("whole", "again")
    ]
    runs[0].train()
    runs[1].train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert torch.equal(flat(runs[0]._parameters), flat(runs[1]._parameters))


def test_a_weight_without_prompts_is_refused(make_trainer: MakeTrainer, kept: list[Kept]) -> None:
    with pytest.raises(SettingError, match="keep_weight=1 without prompts to keep: give `kept`"):
        make_trainer(keep_weight=1.0)
    with pytest.raises(SettingError, match="1 prompts to keep: give at least two"):
        make_trainer(keep_weight=1.0, kept=kept[:1])


def test_many_changed_prompts_are_told_with_what_to_do() -> None:
    assert kept_sentence(["a"], 10) == "1 of 10 prompts that were watched have another first choice now"
    told = kept_sentence(["The capital of Oz is", "b"], 10)
    assert told.startswith("2 of 10 prompts")
    assert "('The capital of Oz is', 'b')" in told
    assert told.endswith("lower learning_rate or keep_tolerance, or raise keep_weight")
