"""What a user of `DPOTrainer` relies on."""

from __future__ import annotations

import copy
import json
import sys
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
from trl import DPOConfig, DPOTrainer

from tests.conftest import CHAT_TEMPLATE
from tests.trl_ext.conftest import LANDS, MakeTrainer, flat, lora, preference_rows, trained_adapter
from trl_ext import CoRSAConfig, CoRSATrainer

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


def test_defaults_are_the_papers(tmp_path: Path) -> None:
    config = CoRSAConfig(str(tmp_path), use_cpu=True)
    assert (config.dpo_weight, config.beta, config.sam_rho, config.sam_eps) == (1.0, 0.1, 0.05, 1e-12)
    assert (config.pcgrad, config.pcgrad_form, config.reference) == (True, "sequential", "base")
    assert config.learning_rate == 2e-4
    assert config.per_device_train_batch_size * config.gradient_accumulation_steps == 16
    assert config.precompute_ref_log_probs


def test_without_an_adapter_the_paper_s_is_made(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, dataset: Dataset, tmp_path: Path
) -> None:
    args = CoRSAConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    trainer = CoRSATrainer(tiny_llama, args=args, train_dataset=dataset, processing_class=tiny_tokenizer)
    config = trainer.model.peft_config["default"]
    assert (config.r, config.lora_alpha) == (32, 64)
    linears = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {name.rpartition(".")[2] for name in config.target_modules} == linears  # all but the head


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


def test_tokens_are_counted_once_although_a_step_looks_twice(make_trainer: MakeTrainer) -> None:
    counts = []
    for rho in (0.0, 0.05):
        trainer = make_trainer(sam_rho=rho, max_steps=3)
        trainer.train()
        counts.append(trainer._total_train_tokens)
    assert counts[0] == counts[1] > 0


def test_one_forward_per_half_step_and_reference_run_once_before_training(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(max_steps=4, gradient_accumulation_steps=1)
    calls: list[int] = []
    trainer.model.get_base_model().model.register_forward_hook(lambda *_: calls.append(1))
    trainer.train()
    assert len(calls) == 4 * 2
    assert {"ref_chosen_logps", "ref_rejected_logps"} <= set(trainer.train_dataset.column_names)


def test_without_sam_a_step_is_one_forward_and_without_dpo_the_rejected_rows_stay_out(
    make_trainer: MakeTrainer,
) -> None:
    trainer = make_trainer(max_steps=4, gradient_accumulation_steps=1, sam_rho=0.0, dpo_weight=0.0)
    rows: list[int] = []
    trainer.model.get_base_model().model.register_forward_hook(
        lambda _m, _a, kwargs, _o: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    trainer.train()
    assert rows == [2] * 4


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
        args=DPOConfig(f"{ours.args.output_dir}-dpo", loss_type=["sft"], **shared),
        train_dataset=Dataset.from_list(preference_rows()),
        processing_class=ours.processing_class,
    )
    theirs.train()
    expected = [p for n, p in twin.named_parameters() if ".default." in n]
    torch.testing.assert_close(flat(ours._parameters), flat(expected), rtol=1e-4, atol=1e-5)


def test_it_learns_the_new_answers_and_forgets_the_old(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(max_steps=30, gradient_accumulation_steps=1, per_device_train_batch_size=8)
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "sft_loss" in entry]
    assert log[-1]["sft_loss"] < 0.2 * log[0]["sft_loss"]
    assert log[-1]["margin"] > log[0]["margin"] + 10
    assert log[-1]["rewards/accuracies"] == 1.0


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


def test_streamed_data(make_trainer: MakeTrainer, dataset: Dataset) -> None:
    trainer = make_trainer(train_dataset=dataset.to_iterable_dataset(), precompute_ref_log_probs=False)
    trainer.train()
    assert trainer.state.global_step == 2


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


def test_a_bfloat16_adapter_is_raised_to_float32(make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM) -> None:
    """As TRL leaves those of 4-bit models; a perturbation would vanish in its rounding."""
    model = trained_adapter(tiny_llama)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    trainer = make_trainer(model=model)
    trainer.train()
    assert {p.dtype for p in trainer._parameters} == {torch.float32}


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


def test_evaluating_a_new_data_set_after_training(make_trainer: MakeTrainer, dataset: Dataset) -> None:
    trainer = make_trainer()
    trainer.train()
    metrics = trainer.evaluate(Dataset.from_list(preference_rows()[:4]))
    assert metrics["eval_loss"] == pytest.approx(metrics["eval_sft_loss"] + metrics["eval_dpo_loss"], rel=1e-5)


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


def test_model_card_cites_the_method(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(output_dir=str(tmp_path / "card"))
    (tmp_path / "card").mkdir(exist_ok=True)
    trainer.create_model_card(model_name="edited")
    card = (tmp_path / "card" / "README.md").read_text()
    assert "CoRSA" in card
    assert "2602.03696" in card


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


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"loss_type": "ipo"}, "OneBackward"),
        ({"loss_type": "hinge"}, "OneBackward"),
        ({"f_divergence_type": "forward_kl"}, "OneBackward"),
        ({"use_weighting": True}, "TwoBackwards"),
        ({"ld_alpha": 0.5}, "TwoBackwards"),
    ],
    ids=["ipo", "hinge", "f-divergence", "wpo", "ld-dpo"],
)
def test_trls_other_preference_losses_are_the_ones_trained(
    make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM, settings: dict[str, Any], path: str
) -> None:
    """Without SAM and PCGrad the update is minus the gradient of L_sft + L_dpo, as autograd takes it in one go."""
    trainer = make_trainer(
        model=trained_adapter(tiny_llama.double()),
        optim="sgd",
        learning_rate=1.0,
        max_steps=1,
        gradient_accumulation_steps=1,
        max_grad_norm=0.0,
        sam_rho=0.0,
        pcgrad=False,
        **settings,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    loss = trainer._compute_loss(trainer.model, batch, return_outputs=False)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, trainer._parameters)])
    start = flat(trainer._parameters)
    trainer.train()
    assert type(trainer._linearization).__name__ == path
    distance = (flat(trainer._parameters) - start + expected).norm() / expected.norm()
    assert distance < 1e-4


def test_without_dpo_the_reference_is_not_run_either(
    make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM, dataset: Dataset
) -> None:
    calls: list[int] = []
    tiny_llama.model.register_forward_hook(lambda *_: calls.append(1))
    trainer = make_trainer(model=tiny_llama, dpo_weight=0.0, eval_dataset=dataset)
    assert len(calls) <= 2  # two tokens, to see that the head explains the logits
    assert trainer.evaluate()["eval_dpo_loss"] > 0


def test_prepared_data_of_one_trainer_serves_another(make_trainer: MakeTrainer, dataset: Dataset) -> None:
    first = make_trainer(eval_dataset=dataset)
    again = make_trainer(train_dataset=first.train_dataset)
    assert again.train_dataset["ref_chosen_logps"][:] == pytest.approx(first.train_dataset["ref_chosen_logps"][:])
    assert first.evaluate(first.eval_dataset)["eval_loss"] == pytest.approx(first.evaluate()["eval_loss"], rel=1e-5)


def test_checkpointing_settings_as_json_as_a_command_line_gives_them(tmp_path: Path) -> None:
    config = CoRSAConfig(str(tmp_path), use_cpu=True, gradient_checkpointing_kwargs='{"use_reentrant": false}')
    assert config.gradient_checkpointing_kwargs == {"use_reentrant": False}


@pytest.mark.parametrize("source", ["dropout", "neftune"])
def test_noise_is_the_same_in_both_looks_of_a_step(
    make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM, source: str
) -> None:
    """With a radius of almost nothing the second look is the first, noise and all."""
    updates = []
    for rho in (0.0, 1e-9):
        settings: dict[str, Any] = {"neftune_noise_alpha": 5.0} if source == "neftune" else {"disable_dropout": False}
        trainer = make_trainer(
            model=trained_adapter(copy.deepcopy(tiny_llama).double(), lora_dropout=0.3 * (source == "dropout")),
            sam_rho=rho,
            optim="sgd",
            max_steps=1,
            gradient_accumulation_steps=1,
            **settings,
        )
        start = flat(trainer._parameters)
        trainer.train()
        updates.append(flat(trainer._parameters) - start)
    torch.testing.assert_close(updates[0], updates[1], rtol=1e-4, atol=1e-6)


def test_sam_reaches_through_an_autocast_around_the_training(
    make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM
) -> None:
    updates = []
    for rho in (0.0, 1.0):
        trainer = make_trainer(
            model=trained_adapter(copy.deepcopy(tiny_llama)), sam_rho=rho, optim="sgd", one_backward=False, max_steps=1
        )
        start = flat(trainer._parameters)
        with torch.autocast("cpu", torch.bfloat16):
            trainer.train()
        updates.append(flat(trainer._parameters) - start)
    assert (updates[0] - updates[1]).norm() > 0.1 * updates[0].norm()


def test_optimizers_passed_in_are_used(make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM) -> None:
    model = trained_adapter(tiny_llama)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    trainer = make_trainer(model=model, optimizers=(optimizer, None))
    before = flat(trainer._parameters)
    trainer.train()
    assert torch.equal(flat(trainer._parameters), before)


def test_peft_config_is_used(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(peft_config=lora(r=3, target_modules=["q_proj", "v_proj"]))
    trainer.train()
    assert trainer.model.peft_config["default"].r == 3
    assert len(trainer._parameters) == 2 * 2 * 2
