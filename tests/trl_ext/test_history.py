"""New and old answers followed over a training: what is seen is what the model was, and looking changes nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer

from corsa_plugins.data.preferences import to_preference_rows
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError
from corsa_plugins.methods.history import HISTORY, is_look, read_history
from tests.support.small_plans import BORN, FRANCE, ITALY
from tests.trl_ext.conftest import MakeTrainer, flat, lora
from trl_ext.activations import under_current_names
from trl_ext.history import HistoryCallback

EDIT = ("history/edit/logps/new", "history/edit/logps/old", "history/edit/margin")


def followed(request: EditRequest, *prompts: str) -> EditRequest:
    return EditRequest(**{**dict(request), "paraphrases": (), "validation_prompts": prompts})


REQUESTS = [followed(FRANCE, "What is the capital of France?", "France has its capital in"), ITALY, BORN]


def rows() -> Dataset:
    return Dataset.from_list(to_preference_rows(REQUESTS))


def numbers(records: Any) -> list[dict[str, Any]]:
    """Without what it took."""
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def log_prob(model: Any, tokenizer: Any, prompt: str, target: str) -> float:
    """log p(target | prompt), written out: a sequence at a time, the whole vocabulary, in float64."""
    asked = tokenizer(prompt)["input_ids"]
    ids = tokenizer(f"{prompt} {target}")["input_ids"]
    with torch.no_grad():
        rows = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(rows[at - 1, ids[at]]) for at in range(len(asked), len(ids)))


class Copies(TrainerCallback):
    """The weights as they were before the first step and after every one."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_step_end(args, state, control, **kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.weights.append({name: tensor.clone() for name, tensor in kwargs["model"].state_dict().items()})


def test_every_look_is_at_the_model_of_that_step(
    make_trainer: MakeTrainer, taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    history, copies = HistoryCallback(REQUESTS, every=3, batch_size=2), Copies()
    settings = {"model": taught_llama, "train_dataset": rows(), "max_steps": 7}
    trainer = make_trainer(**settings, callbacks=[copies, history])
    trainer.train()
    assert [record["step"] for record in history.records] == [0, 3, 6, 7]
    assert [entry for entry in trainer.state.log_history if is_look(entry)] == history.records
    model = trainer.model.eval()

    def mean(pairs: list[tuple[str, str]]) -> float:
        return sum(log_prob(model, tiny_tokenizer, *pair) for pair in pairs) / len(pairs)

    for record in history.records:
        model.load_state_dict(copies.weights[record["step"]])
        new = mean([(one.prompt, one.target_new) for one in REQUESTS])
        old = mean([(one.prompt, str(one.target_old)) for one in REQUESTS])
        assert [record[name] for name in EDIT] == pytest.approx([new, old, new - old], abs=1e-4)
        # The first prompt that is kept for validation, of the one request that has any.
        other = [log_prob(model, tiny_tokenizer, REQUESTS[0].validation_prompts[0], t) for t in ("Rome", "Paris")]
        found = [record[f"history/validation/{name}"] for name in ("logps/new", "logps/old", "margin")]
        assert found == pytest.approx([*other, other[0] - other[1]], abs=1e-4)
    first, last = history.records[0], history.records[-1]
    assert first[EDIT[2]] < 0 < last[EDIT[2]]


@pytest.mark.parametrize("kind", ["corsa", "lora-sft", "dpo"])
def test_looking_changes_nothing(
    kind: str, make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """With dropout, so that a number drawn or a mode left would tell."""

    def train(callbacks: list[Any]) -> tuple[Any, torch.Tensor, list[dict[str, Any]]]:
        settings = {"model": copy.deepcopy(tiny_llama), "peft_config": lora(lora_dropout=0.3), "callbacks": callbacks}
        if kind != "dpo":
            weight = {"dpo_weight": 0.0, "sam_rho": 0.0} if kind == "lora-sft" else {}
            trainer: Any = make_trainer(**settings, **weight, max_steps=3, seed=5, disable_dropout=False)
        else:
            arguments = DPOConfig(
                str(tmp_path / "dpo"), use_cpu=True, bf16=False, report_to="none", max_steps=3, logging_steps=1,
                learning_rate=1e-2, per_device_train_batch_size=2, save_strategy="no", seed=5, disable_tqdm=True,
                disable_dropout=False, **under_current_names({"gradient_checkpointing": False}),
            )  # fmt: skip
            trainer = DPOTrainer(args=arguments, train_dataset=rows(), processing_class=tiny_tokenizer, **settings)
        trainer.train()
        logged = [{k: v for k, v in entry.items() if "runtime" not in k and "per_second" not in k}
                  for entry in trainer.state.log_history if not is_look(entry)]  # fmt: skip
        modes = [module.training for module in trainer.model.modules()]
        return modes, flat(p for p in trainer.model.parameters()), logged

    history = HistoryCallback(REQUESTS, every=1)
    modes, weights, logged = train([])
    found_modes, found_weights, found_logged = train([history])
    assert len(history.records) == 4
    assert len({record[EDIT[0]] for record in history.records}) == 4
    assert torch.equal(found_weights, weights)
    assert found_modes == modes
    assert found_logged == logged


def test_a_training_taken_up_again_goes_on_with_its_history(
    make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    def train(checkpoint: str | None = None) -> list[dict[str, Any]]:
        history = HistoryCallback(REQUESTS, every=2, path=tmp_path / HISTORY)
        torch.manual_seed(0)
        trainer = make_trainer(
            model=copy.deepcopy(tiny_llama), callbacks=[history], max_steps=5, save_strategy="steps", save_steps=3
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        assert read_history(tmp_path / HISTORY) == history.records
        return numbers(history.records)

    whole = train()
    assert [record["step"] for record in whole] == [0, 2, 4, 5]
    assert numbers(train(str(tmp_path / "out" / "checkpoint-3"))) == [
        *whole[:2],
        {**whole[1], **{"step": 3}, **_at(tmp_path, 3)},
        *whole[2:],
    ]


def _at(folder: Path, step: int) -> dict[str, Any]:
    return next(record for record in numbers(read_history(folder / HISTORY)) if record["step"] == step)


def test_a_training_that_is_stopped_early_has_its_last_look(make_trainer: MakeTrainer) -> None:
    class Stop(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step >= 2

    history = HistoryCallback(REQUESTS, looks=1)
    make_trainer(max_steps=9, callbacks=[history, Stop()]).train()
    assert [record["step"] for record in history.records] == [0, 2]


def test_old_answers_count_where_there_are_some(make_trainer: MakeTrainer, taught_llama: LlamaForCausalLM) -> None:
    bare = EditRequest(prompt="The capital of Spain is", target_new="Oslo")
    records = {}
    for name, requests in {"both": [FRANCE, bare], "one": [FRANCE], "none": [bare]}.items():
        history = HistoryCallback(requests, looks=1)
        make_trainer(model=copy.deepcopy(taught_llama), max_steps=1, callbacks=[history]).train()
        records[name] = history.records[0]
    new, old, margin = EDIT
    both, one, none = records["both"], records["one"], records["none"]
    assert both[new] == pytest.approx((one[new] + none[new]) / 2, abs=1e-5)
    assert [both[old], both[margin]] == pytest.approx([one[old], one[margin]], abs=1e-5)
    assert not {old, margin} & set(none)


def test_what_cannot_be_followed_is_refused(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, message in (
        ({"requests": []}, "no requests to follow"),
        ({"requests": REQUESTS, "looks": 0}, "looks is 0"),
        ({"requests": REQUESTS, "every": 0}, "every is 0"),
    ):
        with pytest.raises(SettingError, match=message):
            HistoryCallback(**arguments)
    trainer = make_trainer(callbacks=[HistoryCallback(REQUESTS)])
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(SettingError, match="spread over processes"):
        trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)
