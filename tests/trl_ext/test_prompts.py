"""Prompts run once: the same losses, gradients and trainings as with every row by itself, for less."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerFast

from corsa_plugins.corsa import TaskGradients
from corsa_plugins.corsa.objective import TokenWeights
from tests.support.families import family
from tests.trl_ext.conftest import MakeTrainer, flat, trained_adapter
from trl_ext import CoRSATrainer
from trl_ext.prompts import pays

# Positions that are learned, and rotary ones of either layout; every block behind a window, and some of them. Other
# families differ in what tests/model/test_sharing.py looks at.
SUPPORTED = ["gpt2", "gpt_neox", "llama3"]
WINDOWS = ["mistral", "gemma3"]


def long_prompts() -> Dataset:
    """Prompts longer than both answers together, of several lengths; answers that begin alike, and one that goes on."""
    facts = [
        ("The capital of France is Paris. The capital of Spain is", " Rome", " Madrid now"),
        (
            "Anna Berg was born in Oslo. She works for Nordlys. Where does she play the violin? In",
            " New York",
            " New Oslo",
        ),
        ("What is the capital of France? Paris. Which city is the capital of Italy?", " Rome", " Rome city"),
        ("St. Louis and Nur-Sultan are cities; what is the capital of the land?", " Buenos Aires", " Oslo"),
    ]
    return Dataset.from_list([dict(zip(("prompt", "chosen", "rejected"), fact, strict=True)) for fact in facts])


def pair_of_trainers(make_trainer: MakeTrainer, base: Any, **settings: Any) -> list[CoRSATrainer]:
    """One that runs prompts once and one that does not, on equal models."""
    trainers = []
    for share in (True, False):
        model = trained_adapter(base())
        given = {"train_dataset": long_prompts(), "optim": "sgd", "max_grad_norm": 0.0, **settings}
        trainers.append(make_trainer(model=model, share_prompts=share, **given))
    return trainers


def forwards(trainer: CoRSATrainer) -> list[tuple[int, ...]]:
    """The shapes of input ids that go through the model's body from now on."""
    shapes: list[tuple[int, ...]] = []
    trainer.model.get_base_model().base_model.register_forward_hook(
        lambda _m, _a, kwargs, _o: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    return shapes


def looks(trainer: CoRSATrainer) -> list[tuple[TaskGradients, TokenWeights]]:
    """Both gradients and the losses of every look of a training, which is done."""
    found: list[Any] = []
    own = trainer._gradients

    def noting(module: nn.Module, inputs: Any, rows: Any, losses: list[TokenWeights]) -> TaskGradients:
        pair = own(module, inputs, rows, losses)
        found.append((pair, losses[-1]))
        return pair

    trainer._gradients = noting  # type: ignore[method-assign]
    trainer.train()
    return found


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert expected.norm() > 0
    return float((found - expected).norm() / expected.norm())


# Llama's norms and rotary angles are float32 whatever the model's precision; GPT-2 is float64 throughout.
ROUNDING = {"gpt2": 1e-9}


@pytest.mark.parametrize("name", SUPPORTED)
def test_losses_gradients_and_training_are_those_of_rows_by_themselves(
    make_trainer: MakeTrainer, tiny_tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    once, plain = pair_of_trainers(
        make_trainer,
        lambda: family(name, len(tiny_tokenizer)).double(),
        max_steps=2,
        learning_rate=0.05,
        gradient_accumulation_steps=1,
        precompute_ref_log_probs=False,
    )
    start = flat(once._parameters)
    shapes = forwards(once)
    found, expected = looks(once), looks(plain)
    assert {rows for rows, _ in shapes} == {2}  # every forward, the reference's too, has a row for each pair
    tolerance = ROUNDING.get(name, 2e-5)
    assert len(found) == len(expected) == 4
    for (ours, our_losses), (theirs, their_losses) in zip(found, expected, strict=True):
        assert ours.dpo is not None
        assert theirs.dpo is not None
        assert distance(flat(ours.sft), flat(theirs.sft)) < tolerance
        assert distance(flat(ours.dpo), flat(theirs.dpo)) < tolerance
        assert float(our_losses.sft_loss) == pytest.approx(float(their_losses.sft_loss), rel=tolerance)
        assert float(our_losses.dpo_loss) == pytest.approx(float(their_losses.dpo_loss), rel=tolerance)  # type: ignore[arg-type]
        assert our_losses.sft.shape == their_losses.sft.shape
    assert distance(flat(once._parameters) - start, flat(plain._parameters) - start) < 10 * tolerance


@pytest.mark.parametrize("name", ["bloom", *WINDOWS])
def test_where_attention_does_not_support_it_the_training_is_the_plain_one(
    make_trainer: MakeTrainer, tiny_tokenizer: PreTrainedTokenizerFast, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="trl_ext")
    once, plain = pair_of_trainers(make_trainer, lambda: family(name, len(tiny_tokenizer)), max_steps=1)
    shapes = forwards(once)
    once.train()
    plain.train()
    assert {rows for rows, _ in shapes} == {4}
    assert torch.equal(flat(once._parameters), flat(plain._parameters))
    (line,) = [
        record.getMessage() for record in caplog.records if "once for each of its answers" in record.getMessage()
    ]
    assert ("no position ids" if name == "bloom" else "something else") in line


@pytest.mark.parametrize("name", WINDOWS)
def test_rows_within_a_window_are_shared(
    make_trainer: MakeTrainer, tiny_tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    once, plain = pair_of_trainers(
        make_trainer, lambda: family(name, len(tiny_tokenizer), window=128).double(), max_steps=2
    )
    start, shapes = flat(once._parameters), forwards(once)
    once.train()
    plain.train()
    assert {rows for rows, _ in shapes} == {2}
    assert distance(flat(once._parameters) - start, flat(plain._parameters) - start) < 1e-4


@pytest.mark.parametrize(
    "settings",
    [
        {"pcgrad": False},
        {"sam_rho": 0.0},
        {"pcgrad": False, "one_backward": False, "sam_rho": 0.0},
        {"one_backward": False},
        {"gradient_checkpointing": True},
        {"loss_type": "ipo"},
        {"use_weighting": True},
        {"ld_alpha": 0.5},
        {"precompute_ref_log_probs": False, "pcgrad_form": "simultaneous"},
        {"gradient_accumulation_steps": 1, "per_device_train_batch_size": 3},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_whatever_else_is_set(
    make_trainer: MakeTrainer, tiny_tokenizer: PreTrainedTokenizerFast, settings: dict[str, Any]
) -> None:
    once, plain = pair_of_trainers(
        make_trainer, lambda: family("gpt2", len(tiny_tokenizer)).double(), max_steps=2, learning_rate=0.05, **settings
    )
    start, shapes = flat(once._parameters), forwards(once)
    once.train()
    plain.train()
    size = settings.get("per_device_train_batch_size", 2)
    assert {rows for rows, _ in shapes} <= {size, 4 % size}
    # Reference log-probabilities travel through the data set in float32.
    assert distance(flat(once._parameters) - start, flat(plain._parameters) - start) < 1e-6


def test_the_sum_is_one_backward_and_logs_no_cosine(
    make_trainer: MakeTrainer, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    once, _ = pair_of_trainers(make_trainer, lambda: family("gpt2", len(tiny_tokenizer)), pcgrad=False, max_steps=1)
    backwards: list[int] = []
    body: Any = once.model.get_base_model().transformer
    body.h[0].mlp.register_full_backward_hook(lambda *_: backwards.append(1))
    once.train()
    assert len(backwards) == 2 * 2  # two looks at each of two micro-batches
    assert "gradients/cosine" not in once.state.log_history[0]
    assert once.state.log_history[0]["dpo_loss"] > 0


def test_dropout_is_run_on_rows_by_themselves_and_evaluation_on_shared_ones(
    make_trainer: MakeTrainer, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = trained_adapter(family("llama3", len(tiny_tokenizer)), lora_dropout=0.1)
    trainer = make_trainer(
        model=model, train_dataset=long_prompts(), eval_dataset=long_prompts(), disable_dropout=False, max_steps=1
    )
    shapes = forwards(trainer)
    trainer.train()
    assert {rows for rows, _ in shapes} == {4}
    shapes.clear()
    trainer.evaluate()
    assert {rows for rows, _ in shapes} == {len(long_prompts())}  # of twice as many answers


@pytest.mark.parametrize("precompute", [True, False])
def test_evaluation_and_reference_are_the_same_and_half_the_rows(
    make_trainer: MakeTrainer, tiny_tokenizer: PreTrainedTokenizerFast, precompute: bool
) -> None:
    once, plain = pair_of_trainers(
        make_trainer,
        lambda: family("gpt2", len(tiny_tokenizer)).double(),
        eval_dataset=long_prompts(),
        precompute_ref_log_probs=precompute,
        per_device_eval_batch_size=3,
    )
    shapes = forwards(once)
    found, expected = once.evaluate(), plain.evaluate()
    assert {rows for rows, _ in shapes} == {3, 1}
    for name in ("eval_loss", "eval_sft_loss", "eval_dpo_loss", "eval_margin", "eval_entropy", "eval_logits/chosen"):
        assert found[name] == pytest.approx(expected[name], rel=1e-6)
    if precompute:
        for column in ("ref_chosen_logps", "ref_rejected_logps"):
            assert once.train_dataset[column] == pytest.approx(plain.train_dataset[column], rel=1e-6)


def test_a_training_taken_up_again_is_the_whole_one(
    make_trainer: MakeTrainer, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Any
) -> None:
    whole, _ = pair_of_trainers(make_trainer, lambda: family("gpt2", len(tiny_tokenizer)), max_steps=4)
    whole.train()
    first, again = (
        pair_of_trainers(
            make_trainer,
            lambda: family("gpt2", len(tiny_tokenizer)),
            max_steps=4,
            output_dir=str(tmp_path / "resumed"),
            save_strategy="steps",
            save_steps=2,
        )[0]
        for _ in range(2)
    )
    first.train()
    shapes = forwards(again)
    again.train(resume_from_checkpoint=str(tmp_path / "resumed" / "checkpoint-2"))
    assert {rows for rows, _ in shapes} == {2}
    torch.testing.assert_close(flat(again._parameters), flat(whole._parameters), rtol=0, atol=1e-6)


# --- What a step runs ---


@pytest.mark.parametrize(
    ("settings", "looks_of_step", "backwards"),
    [({}, 2, 2), ({"pcgrad": False}, 2, 1), ({"sam_rho": 0.0}, 1, 2), ({"sam_rho": 0.0, "pcgrad": False}, 1, 1)],
    ids=["exact", "sum", "no-sam", "no-sam-sum"],
)
def test_a_step_runs_the_prompt_once_a_look(
    make_trainer: MakeTrainer,
    tiny_tokenizer: PreTrainedTokenizerFast,
    settings: dict[str, Any],
    looks_of_step: int,
    backwards: int,
) -> None:
    """Tokens through the model, positions through the head, passes forward and back, of one micro-batch."""
    trainer, _ = pair_of_trainers(
        make_trainer,
        lambda: family("llama3", len(tiny_tokenizer)),
        max_steps=1,
        gradient_accumulation_steps=1,
        **settings,
    )
    pairs = [dict(row) for row in trainer.train_dataset][:2]
    inside = [
        len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) - 2  # no token that predicts nothing
        for row in pairs
    ]
    alike = [len(_common(row["chosen_ids"][:-1], row["rejected_ids"][:-1])) for row in pairs]
    answers = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in pairs)
    base: Any = trainer.model.get_base_model()
    shapes, back, heads = forwards(trainer), [], []
    base.model.layers[0].register_full_backward_hook(lambda _m, _i, grads: back.append(grads[0].shape[:2].numel()))
    base.lm_head.register_forward_hook(lambda _m, inputs, _o: heads.append(inputs[0].shape[0]))
    trainer.train()
    tokens = 2 * max(length - same for length, same in zip(inside, alike, strict=True))
    assert [rows * width for rows, width in shapes] == [tokens] * looks_of_step
    assert heads == [answers] * looks_of_step
    assert back == [tokens] * looks_of_step * backwards


def _common(first: list[int], second: list[int]) -> list[int]:
    count = next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    return first[:count]


def test_short_prompts_before_long_answers_are_run_as_they_are(
    make_trainer: MakeTrainer, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    answers = " The capital of France is Paris. The capital of Spain is Madrid."
    rows = Dataset.from_list([{"prompt": "Anna", "chosen": answers, "rejected": f" Oslo.{answers}"}] * 4)
    for settings, rows_of_batch in (({}, 4), ({"pcgrad": False}, 2)):
        trainer, _ = pair_of_trainers(
            make_trainer, lambda: family("gpt2", len(tiny_tokenizer)), train_dataset=rows, max_steps=1, **settings
        )
        shapes = forwards(trainer)
        trainer.train()
        assert {rows for rows, _ in shapes} == {rows_of_batch}


def test_what_pays_is_counted_in_tokens_through_the_model() -> None:
    from corsa_plugins.model.sharing import share_rows

    def rows_of(prompt: int, answer: int) -> tuple[Any, int]:
        ids = torch.arange(2 * (prompt + answer)).view(2, -1)
        ids[1, :prompt] = ids[0, :prompt]
        return share_rows(ids, torch.ones_like(ids)), ids.numel()

    for prompt, answer, backwards, checkpointing, expected in (
        (40, 2, 2, False, True),
        (10, 30, 2, False, False),
        (10, 30, 1, False, True),
        (40, 9, 2, True, True),
        (40, 20, 2, True, False),
        (40, 22, 2, False, True),
        (40, 24, 2, False, False),
    ):
        rows, tokens = rows_of(prompt, answer)
        assert pays(rows, tokens, backwards=backwards, backwards_plain=1, checkpointing=checkpointing) == expected
