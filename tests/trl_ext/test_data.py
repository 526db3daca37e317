"""What a preference data set must hold, and what becomes of rows that are too long."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from tests.trl_ext.conftest import MakeTrainer, lora, preference_rows


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


def test_max_length_cuts_completions_and_drops_rows_that_have_none(
    make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    rows = preference_rows()
    rows[3]["prompt"] = "What is the capital of France? " * 10
    trainer = make_trainer(train_dataset=Dataset.from_list(rows), max_length=30)
    assert len(trainer.train_dataset) == len(rows) - 1
    assert "1 of 8 rows of the train data set are left out" in caplog.text
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape[1] <= 30


def test_rows_longer_than_the_model_reads_are_refused(make_trainer: MakeTrainer, tiny_tokenizer: Any) -> None:
    rows = preference_rows()
    rows[3]["prompt"] = "The capital of France is Paris. " * 40 + rows[3]["prompt"]
    config = GPT2Config(vocab_size=len(tiny_tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=64, n_inner=32)
    settings: dict[str, Any] = {"peft_config": lora(target_modules=["c_attn"], fan_in_fan_out=True)}
    with pytest.raises(ValueError, match=r"Row 3 of the train data set is \d+ tokens long, and the model reads 64"):
        make_trainer(model=GPT2LMHeadModel(config), train_dataset=Dataset.from_list(rows), **settings)
    settings |= {"model": GPT2LMHeadModel(config), "max_length": 64, "max_steps": 1}
    make_trainer(train_dataset=Dataset.from_list(rows), **settings).train()  # without the row, as TRL says
