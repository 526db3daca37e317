"""What is logged, in training and in evaluation."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset
from transformers import LlamaForCausalLM, TrainerCallback
from transformers.integrations import integration_utils

from tests.trl_ext.conftest import MakeTrainer, preference_rows

OURS = {
    "sft_loss",
    "dpo_loss",
    "margin",
    "logps/new",
    "logps/old",
    "gradients/cosine",
    "gradients/conflict",
    "sam/perturbation_norm",
}
TRLS = {
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "logits/chosen",
    "logits/rejected",
    "mean_token_accuracy",
    "entropy",
    "num_tokens",
}


def test_logs_our_metrics_and_all_of_trls(make_trainer: MakeTrainer, dataset: Dataset) -> None:
    trainer = make_trainer(eval_dataset=dataset, eval_strategy="steps", eval_steps=2, max_steps=2)
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "sft_loss" in entry)
    assert logged.keys() >= OURS | TRLS
    assert logged["loss"] == pytest.approx(logged["sft_loss"] + logged["dpo_loss"], rel=1e-4)
    assert logged["margin"] == pytest.approx(logged["logps/new"] - logged["logps/old"], rel=1e-4)
    assert logged["sam/perturbation_norm"] == pytest.approx(0.05, rel=1e-4)
    evaluated = next(entry for entry in trainer.state.log_history if "eval_sft_loss" in entry)
    assert evaluated["eval_loss"] == pytest.approx(evaluated["eval_sft_loss"] + evaluated["eval_dpo_loss"], rel=1e-4)
    assert "eval_margin" in evaluated


def test_evaluating_a_new_data_set_after_training(make_trainer: MakeTrainer, dataset: Dataset) -> None:
    trainer = make_trainer()
    trainer.train()
    metrics = trainer.evaluate(Dataset.from_list(preference_rows()[:4]))
    assert metrics["eval_loss"] == pytest.approx(metrics["eval_sft_loss"] + metrics["eval_dpo_loss"], rel=1e-5)


def test_without_dpo_the_reference_is_not_run_either(
    make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM, dataset: Dataset
) -> None:
    calls: list[int] = []
    tiny_llama.model.register_forward_hook(lambda *_: calls.append(1))
    trainer = make_trainer(model=tiny_llama, dpo_weight=0.0, eval_dataset=dataset)
    assert len(calls) <= 2  # two tokens, to see that the head explains the logits
    assert trainer.evaluate()["eval_dpo_loss"] > 0


def test_a_logger_of_report_to_gets_our_metrics(
    make_trainer: MakeTrainer, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[dict[str, float]] = []

    class Logger(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            received.append(dict(logs))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "ours", Logger)
    trainer = make_trainer(report_to="ours", eval_dataset=dataset, eval_strategy="steps", eval_steps=2, max_steps=2)
    trainer.train()
    trained = next(logs for logs in received if "sft_loss" in logs)
    assert trained.keys() >= OURS | TRLS
    assert all(isinstance(trained[name], float) for name in OURS)  # what loggers take
    assert any("eval_sft_loss" in logs for logs in received)
