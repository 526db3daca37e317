"""Update 2 and those that follow, on the adapter of update 1."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import LlamaForCausalLM

from tests.oracles import corsa as oracle
from tests.trl_ext.conftest import MakeTrainer, flat, preference_rows, trained_adapter


def reference_log_probs(trainer: object) -> torch.Tensor:
    rows = trainer.train_dataset  # type: ignore[attr-defined]
    return torch.tensor([rows["ref_chosen_logps"][:], rows["ref_rejected_logps"][:]], dtype=torch.float64)


def expected(model: torch.nn.Module, trainer: object) -> torch.Tensor:
    rows = [dict(row) for row in trainer.train_dataset]  # type: ignore[attr-defined]
    with torch.no_grad():
        return torch.tensor(
            [
                [float(oracle.answer_log_probs(model, row["prompt_ids"], row[which]).sum()) for row in rows]
                for which in ("chosen_ids", "rejected_ids")
            ],
            dtype=torch.float64,
        )


@pytest.mark.parametrize("precompute", [True, False])
def test_the_base_model_is_the_reference_also_of_an_adapter_that_is_passed_in(
    make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM, precompute: bool
) -> None:
    trainer = make_trainer(model=trained_adapter(copy.deepcopy(tiny_llama)), precompute_ref_log_probs=precompute)
    assert set(trainer.model.peft_config) == {"default"}
    if precompute:
        torch.testing.assert_close(
            reference_log_probs(trainer), expected(tiny_llama.eval(), trainer), rtol=1e-4, atol=1e-4
        )
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "rewards/margins" in entry)
    assert abs(logged["rewards/margins"]) > 1e-3  # against itself it would be exactly 0 in the first step


def test_the_adapter_as_it_was_is_the_reference_on_request(
    make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    model = trained_adapter(copy.deepcopy(tiny_llama))
    before = copy.deepcopy(model).eval()
    trainer = make_trainer(model=model, reference="adapter", output_dir=str(tmp_path / "out"))
    torch.testing.assert_close(reference_log_probs(trainer), expected(before, trainer), rtol=1e-4, atol=1e-4)
    trainer.train()
    assert trainer.state.log_history[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-4)
    trainer.save_model()
    assert not (tmp_path / "out" / "ref").exists()  # the frozen copy is no result
    loaded = PeftModel.from_pretrained(tiny_llama, tmp_path / "out")
    assert set(loaded.peft_config) == {"default"}


@pytest.mark.parametrize("then", ["base", "adapter"])
def test_the_adapter_can_be_the_reference_again_and_again(
    make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM, then: str
) -> None:
    model = trained_adapter(tiny_llama)
    make_trainer(model=model, reference="adapter").train()
    trainer = make_trainer(model=model, reference=then)
    trainer.train()
    assert ("ref" in trainer.model.peft_config) == (then == "adapter")


def test_three_updates_on_one_adapter_through_the_disk(
    make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    rows = preference_rows()
    adapter: Path | None = None
    starts = []
    for update in range(3):
        base = copy.deepcopy(tiny_llama)
        model = base if adapter is None else PeftModel.from_pretrained(base, adapter, is_trainable=True)
        trainer = make_trainer(
            model=model,
            train_dataset=Dataset.from_list(rows[2 * update : 2 * update + 2]),
            max_steps=20,
            gradient_accumulation_steps=1,
            output_dir=str(tmp_path / f"update-{update}"),
        )
        starts.append(flat(trainer._parameters))
        trainer.train()
        trainer.save_model()
        adapter = tmp_path / f"update-{update}"
        log = [entry for entry in trainer.state.log_history if "margin" in entry]
        assert log[-1]["margin"] > log[0]["margin"]
        finished = flat(trainer._parameters)
        if update:
            assert torch.equal(starts[update], previous)  # noqa: F821  (bound in the round before)
        previous = finished  # noqa: F841


def test_base_weights_never_change(make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM) -> None:
    before = {name: p.clone() for name, p in tiny_llama.named_parameters()}
    trainer = make_trainer(model=tiny_llama, max_steps=3)
    trainer.train()
    restored = trainer.model.unload()
    assert all(torch.equal(p, before[name]) for name, p in restored.named_parameters())


def test_a_second_trainer_of_the_same_model_projects_completion_positions_alone(
    make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM
) -> None:
    rows: list[int] = []
    tiny_llama.lm_head.register_forward_hook(lambda _m, inputs, _o: rows.append(inputs[0].shape[:-1].numel()))
    model: LlamaForCausalLM | PeftModel = tiny_llama
    seen = []
    for _ in range(2):
        trainer = make_trainer(model=model, max_steps=2)
        rows.clear()
        trainer.train()
        seen.append(list(rows))
        model = trainer.model
    assert seen[0]
    assert seen[0] == seen[1]
