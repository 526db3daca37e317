"""What is saved: one adapter, a card that cites the method, and checkpoints to go on from."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from peft import PeftModel
from transformers import (
    LlamaForCausalLM,
)

from tests.trl_ext.conftest import MakeTrainer, flat, lora, trained_adapter


def test_what_is_saved_is_one_adapter_that_plain_peft_loads(
    make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    base = copy.deepcopy(tiny_llama)
    trainer = make_trainer(model=tiny_llama, output_dir=str(tmp_path / "adapter"))
    trainer.train()
    trainer.save_model()
    saved = sorted(path.name for path in (tmp_path / "adapter").iterdir())
    assert "adapter_model.safetensors" in saved
    assert not any("model" in name and name.endswith("safetensors") and "adapter" not in name for name in saved)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    ours = trainer.model.eval()(input_ids=ids).logits
    torch.testing.assert_close(loaded(input_ids=ids).logits, ours)


def test_other_adapters_of_the_model_stay_out_of_what_is_saved(
    make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    model = trained_adapter(tiny_llama)
    model.add_adapter("other", lora())
    trainer = make_trainer(model=model, output_dir=str(tmp_path / "out"))
    trainer.train()
    trainer.save_model()
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "out" / "other").exists()
    model.save_pretrained(tmp_path / "all")
    assert (tmp_path / "all" / "other").exists()  # and the model is itself again


def test_resuming_gives_what_an_unbroken_run_gives(
    make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    model = trained_adapter(tiny_llama)
    common = {"train_sampling_strategy": "random", "lr_scheduler_type": "linear", "save_strategy": "steps"}
    whole = make_trainer(
        model=copy.deepcopy(model), max_steps=6, output_dir=str(tmp_path / "whole"), save_steps=3, **common
    )
    whole.train()
    again = make_trainer(
        model=copy.deepcopy(model), max_steps=6, output_dir=str(tmp_path / "again"), save_steps=3, **common
    )
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert again.state.global_step == 6
    assert torch.equal(flat(whole._parameters), flat(again._parameters))


def test_model_card_cites_the_method(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(output_dir=str(tmp_path / "card"))
    (tmp_path / "card").mkdir(exist_ok=True)
    trainer.create_model_card(model_name="edited")
    card = (tmp_path / "card" / "README.md").read_text()
    assert "CoRSA" in card
    assert "2602.03696" in card
