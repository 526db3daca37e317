"""What a user of `DPOTrainer` hands to the trainer, taken as there."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)

from corsa_plugins.errors import SettingError
from tests.conftest import CHAT_TEMPLATE
from tests.trl_ext.conftest import LANDS, MakeTrainer, flat, lora, preference_rows, trained_adapter
from trl_ext import CoRSAConfig, CoRSATrainer


def test_without_an_adapter_the_paper_s_is_made(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, dataset: Dataset, tmp_path: Path
) -> None:
    args = CoRSAConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    trainer = CoRSATrainer(tiny_llama, args=args, train_dataset=dataset, processing_class=tiny_tokenizer)
    config = trainer.model.peft_config["default"]
    assert (config.r, config.lora_alpha) == (32, 64)
    linears = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {name.rpartition(".")[2] for name in config.target_modules} == linears  # all but the head


def test_peft_config_is_used(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(peft_config=lora(r=3, target_modules=["q_proj", "v_proj"]))
    trainer.train()
    assert trainer.model.peft_config["default"].r == 3
    assert len(trainer._parameters) == 2 * 2 * 2


@pytest.mark.parametrize("precompute", [True, False])
def test_model_as_a_path(
    make_trainer: MakeTrainer,
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    precompute: bool,
) -> None:
    tiny_llama.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    trainer = make_trainer(model=str(tmp_path / "model"), processing_class=None, precompute_ref_log_probs=precompute)
    trainer.train()
    assert trainer.state.global_step == 2


def test_conversational_data(make_trainer: MakeTrainer, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tiny_tokenizer.chat_template = CHAT_TEMPLATE
    trainer = make_trainer(
        train_dataset=Dataset.from_list(preference_rows(conversational=True)), processing_class=tiny_tokenizer
    )
    trainer.train()
    first = trainer.train_dataset[0]
    text = tiny_tokenizer.decode(first["prompt_ids"])
    assert text.endswith("<|assistant|>\n")
    assert next(iter(LANDS)) in text
    assert len(trainer.state.log_history) > 1


def test_prompt_may_be_implied(make_trainer: MakeTrainer) -> None:
    """TRL's other preference format: both completions carry the prompt."""
    rows = [
        {"chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]}
        for row in preference_rows()
    ]
    trainer = make_trainer(train_dataset=Dataset.from_list(rows))
    trainer.train()
    assert trainer.state.global_step == 2


def test_streamed_data(make_trainer: MakeTrainer, dataset: Dataset) -> None:
    trainer = make_trainer(train_dataset=dataset.to_iterable_dataset(), precompute_ref_log_probs=False)
    trainer.train()
    assert trainer.state.global_step == 2


def test_prepared_data_of_one_trainer_serves_another(make_trainer: MakeTrainer, dataset: Dataset) -> None:
    first = make_trainer(eval_dataset=dataset)
    again = make_trainer(train_dataset=first.train_dataset)
    assert again.train_dataset["ref_chosen_logps"][:] == pytest.approx(first.train_dataset["ref_chosen_logps"][:])
    assert first.evaluate(first.eval_dataset)["eval_loss"] == pytest.approx(first.evaluate()["eval_loss"], rel=1e-5)


def test_callbacks_are_called(make_trainer: MakeTrainer) -> None:
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
            seen.append(state.global_step)

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
            assert all(p.grad is None for p in model.parameters() if not p.requires_grad)

    make_trainer(callbacks=[Watch()], max_steps=3).train()
    assert seen == [1, 2, 3]


def test_a_logger_that_is_half_there_is_no_trainer(
    make_trainer: MakeTrainer, half_installed: Callable[[str, dict[str, str]], None]
) -> None:
    half_installed("trackio", {"__init__.py": ""})
    with pytest.raises(SettingError, match="report_to=trackio"):
        make_trainer(report_to=["trackio"])


def test_optimizers_passed_in_are_used(make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM) -> None:
    model = trained_adapter(tiny_llama)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    trainer = make_trainer(model=model, optimizers=(optimizer, None))
    before = flat(trainer._parameters)
    trainer.train()
    assert torch.equal(flat(trainer._parameters), before)


def test_our_two_names_run_trls_own_dpo_script(
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The script of a user who changed two names: here they are changed in the module it imports them from."""
    import trl
    from trl.scripts import dpo

    tiny_llama.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in preference_rows()))
    monkeypatch.setattr(trl, "DPOTrainer", CoRSATrainer)
    monkeypatch.setattr(trl, "DPOConfig", CoRSAConfig)
    command = f"""dpo --model_name_or_path {tmp_path}/model --dataset_name {data} --output_dir {tmp_path}/out
        --max_steps 2 --use_cpu --bf16 false --report_to none --sam_rho 0.1 --pcgrad_form simultaneous
        --use_peft --lora_r 4 --lora_target_modules all-linear --save_strategy no --per_device_train_batch_size 2"""
    monkeypatch.setattr(sys, "argv", command.split())
    dpo.main(*dpo.make_parser().parse_args_and_config(fail_with_unknown_args=False))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert PeftModel.from_pretrained(model, tmp_path / "out").peft_config["default"].r == 4


def uneven() -> list[dict[str, str]]:
    """Long and short prompts in turn."""
    rows = preference_rows()
    return [row | {"prompt": "Which city is the capital? " * 4 * (i % 2) + row["prompt"]} for i, row in enumerate(rows)]


def test_rows_of_similar_length_come_together_where_that_is_asked_for(make_trainer: MakeTrainer) -> None:
    """TRL's rows have no length that the sampler knows."""
    widths: dict[str, list[int]] = {}
    for strategy in ("sequential", "group_by_length"):
        trainer = make_trainer(train_dataset=Dataset.from_list(uneven() * 3), train_sampling_strategy=strategy)
        batches = list(trainer.get_train_dataloader())
        padding = [int((1 - batch["attention_mask"]).sum()) for batch in batches]
        widths[strategy] = padding
        trainer.train()
    assert len(widths["group_by_length"]) == len(widths["sequential"]) == 12
    assert sum(widths["group_by_length"]) < 0.7 * sum(widths["sequential"])
    assert min(widths["group_by_length"]) < min(widths["sequential"])


def test_no_batch_is_padded_beyond_its_longest_row(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(train_dataset=Dataset.from_list(uneven()))
    for batch in trainer.get_train_dataloader():
        assert bool(batch["attention_mask"].any(dim=0).all())


def test_the_reference_is_run_over_rows_of_similar_length_and_stays_with_its_row(make_trainer: MakeTrainer) -> None:
    rows = uneven()
    both = make_trainer(train_dataset=Dataset.from_list(rows))
    for index, row in enumerate(rows):
        alone = make_trainer(train_dataset=Dataset.from_list([row]))
        for column in ("ref_chosen_logps", "ref_rejected_logps"):
            assert both.train_dataset[column][index] == pytest.approx(alone.train_dataset[column][0], rel=1e-5)
