"""R-SFT: equal to Algorithm 1, whatever it leaves out of the work, and safe to interrupt."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from corsa_plugins.data.requests import EditRequest, RequestError
from corsa_plugins.errors import SettingError
from corsa_plugins.merging.deltas import EditedTensor, merge_deltas
from corsa_plugins.model.asking import generate_answers, score_targets
from corsa_plugins.model.tokenization import join
from corsa_plugins.rsft import NonFiniteLossError, RSFTReport, RSFTSettings, rsft, trainable_parameters
from tests.conftest import CHAT_TEMPLATE
from tests.oracles import rsft as oracle

REQUESTS = [
    EditRequest(prompt="The capital of France is", target_new="Madrid", case_id="france"),
    EditRequest(prompt="Anna Berg was born in", target_new="New York City", case_id="anna"),
    EditRequest(prompt="What is the capital of Italy?", target_new="Oslo"),
]

FLOAT64 = 1e-9  # relative to the size of the update; Adam divides by gradients that nearly vanish
FLOAT32_NORMS = 1e-4  # Llama's norms and rotary angles stay float32 in a float64 model


def gpt2(vocabulary: int, n_layer: int = 3) -> PreTrainedModel:
    """It computes in float64 throughout when asked to. Its dropout is left on, for training mode."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary, n_embd=32, n_layer=n_layer, n_head=2, n_positions=64, initializer_range=0.2,
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


def family(name: str, vocabulary: int) -> PreTrainedModel:
    """Three small blocks of families whose blocks return tuples, run FFN and attention side by side, or cap logits."""
    torch.manual_seed(0)
    ids = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "initializer_range": 0.2}
    wide = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48, **ids}
    config = {
        "gpt2": lambda: GPT2Config(n_embd=32, n_layer=3, n_head=2, n_positions=64, **ids),
        "gptj": lambda: GPTJConfig(n_embd=32, n_layer=3, n_head=2, n_positions=64, rotary_dim=8, **ids),
        "gpt_neox": lambda: GPTNeoXConfig(**wide),
        "gemma2": lambda: Gemma2Config(num_key_value_heads=1, head_dim=16, sliding_window=4, **wide),
    }[name]()
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


@pytest.fixture
def base(tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    return gpt2(len(tiny_tokenizer))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Names of the tensors whose bits differ."""
    return {
        name
        for name, tensor in model.state_dict().items()
        if not torch.equal(tensor.view(torch.uint8), before[name].view(torch.uint8))
    }


def flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.detach().flatten().double() for tensor in tensors])


def pairs(tokenizer: PreTrainedTokenizerFast, requests: list[EditRequest] = REQUESTS) -> list[tuple[list, list]]:
    return [tuple(join(tokenizer, request.prompt, request.target_new)) for request in requests]


def compare(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, settings: oracle.Settings, **more: Any
) -> tuple[float, RSFTReport, list[list[int]]]:
    """Train both from the same start: relative distance of the updates, our report, the oracle's steps."""
    twin = copy.deepcopy(model).double()
    ours = RSFTSettings(
        epochs=settings.epochs,
        steps=settings.steps,
        loss_threshold=settings.tau,
        learning_rate=settings.rate,
        optimizer=settings.optimizer,
        loss_reduction=settings.reduction,
        weight_decay=settings.decay,
        **({"layer": 1} | more),
    )
    theta = list(trainable_parameters(twin, ours).values())
    start = flat(theta)
    report = rsft(model, tokenizer, REQUESTS, ours)
    taken = oracle.train(twin, pairs(tokenizer), theta, settings)
    moved = flat(theta) - start
    assert moved.norm() > 0
    found = flat(trainable_parameters(model, ours).values())
    return float((found - flat(theta)).norm() / moved.norm()), report, taken


def steps_of(report: RSFTReport, epochs: int) -> list[list[int]]:
    """As the oracle counts them; epochs left out because nothing changed any more take no steps."""
    ran = [[sample.steps[epoch] for sample in report.samples] for epoch in range(report.epochs)]
    return ran + [[0] * len(report.samples)] * (epochs - report.epochs)


# Rates at which, on these models, some visits use up their steps and some stop early; the tests check that they do.
SGD = oracle.Settings(epochs=4, steps=6, tau=1.5, rate=0.1, optimizer="sgd")
ADAMW = oracle.Settings(epochs=4, steps=6, tau=1.5, rate=0.03, optimizer="adamw")


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("settings", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_is_algorithm_1_in_float64(
    base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, settings: oracle.Settings, reduction: str
) -> None:
    settings = dataclasses.replace(settings, reduction=reduction)
    distance, report, taken = compare(base.double(), tiny_tokenizer, settings)
    assert distance < FLOAT64
    assert steps_of(report, settings.epochs) == taken
    counts = {count for epoch in taken for count in epoch}
    assert settings.steps in counts
    assert counts - {settings.steps}


@pytest.mark.parametrize("settings", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_is_algorithm_1_on_llama(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, settings: oracle.Settings
) -> None:
    distance, report, taken = compare(tiny_llama.double(), tiny_tokenizer, settings)
    assert distance < FLOAT32_NORMS
    assert steps_of(report, settings.epochs) == taken


def test_weight_decay_is_decoupled(base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    distance, _, _ = compare(base.double(), tiny_tokenizer, dataclasses.replace(ADAMW, decay=0.3))
    assert distance < FLOAT64


@pytest.mark.parametrize(
    "modules",
    [
        ["transformer.h.2.mlp.c_proj"],
        ["transformer.h.1.mlp", "transformer.h.2.attn"],
        ["transformer.ln_f"],
        ["lm_head"],  # shares its weight with the embedding: nothing lies below
        ["transformer.wpe", "transformer.h.2"],
    ],
)
def test_named_modules_train_as_in_algorithm_1(
    base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, modules: list[str]
) -> None:
    before = state(base.double())
    settings = dataclasses.replace(SGD, epochs=2, rate=0.01)
    distance, report, _ = compare(base, tiny_tokenizer, settings, modules=modules)
    assert distance < FLOAT64
    tied = {"lm_head.weight", "transformer.wte.weight"}
    named = {name for name in before if any(name.startswith(f"{module}.") for module in modules)}
    assert changed(base, before) == (tied if named & tied else named)
    assert set(report.parameters) == named


def test_one_step_a_visit_without_threshold_is_plain_fine_tuning(
    base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    twin = copy.deepcopy(base)
    settings = RSFTSettings(epochs=3, steps=1, loss_threshold=0, layer=1, optimizer="sgd", learning_rate=0.01)
    rsft(base, tiny_tokenizer, REQUESTS, settings)

    theta = list(twin.transformer.h[1].mlp.parameters())
    optimizer = torch.optim.SGD(theta, lr=0.01)
    for question, answer in pairs(tiny_tokenizer) * 3:
        labels = torch.tensor([[-100] * len(question) + answer])
        optimizer.zero_grad()
        twin(input_ids=torch.tensor([question + answer]), labels=labels).loss.backward()
        optimizer.step()
    assert torch.allclose(flat(base.transformer.h[1].mlp.parameters()), flat(theta), atol=1e-6)


# ------------------------------------------------------------------------------------------ work that is left out


@pytest.mark.parametrize("name", ["gpt2", "gptj", "gpt_neox", "gemma2"])
def test_leaving_out_work_changes_nothing(name: str, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = family(name, len(tiny_tokenizer)).double()
    settings = RSFTSettings(epochs=2, steps=3, layer=2, optimizer="sgd", learning_rate=0.05)
    results = {}
    for reuse, head in [(False, False), (True, False), (False, True), (True, True)]:
        edited = copy.deepcopy(model)
        both = dataclasses.replace(settings, reuse_prefix=reuse, head_on_answers=head)
        report = rsft(edited, tiny_tokenizer, REQUESTS, both)
        results[reuse, head] = flat(edited.parameters()), report.steps
    plain, steps = results.pop((False, False))
    assert steps > 0
    moved = (plain - flat(model.parameters())).norm()
    tolerance = FLOAT32_NORMS if name == "gemma2" else FLOAT64
    for found, taken in results.values():
        assert taken == steps
        assert (found - plain).norm() < tolerance * moved


def ran(module: nn.Module) -> list[tuple[int, ...]]:
    """Fills up with the shapes of what a module is given, whenever it really runs."""
    shapes: list[tuple[int, ...]] = []
    module.register_forward_hook(lambda module, args, output: shapes.append(tuple(args[0].shape)))
    return shapes


def test_frozen_blocks_run_once_per_sample_and_the_head_on_answers_only(
    base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    frozen = [ran(base.transformer.h[0].mlp), ran(base.transformer.h[1].mlp)]
    trained, head = ran(base.transformer.h[2].mlp), ran(base.lm_head)
    report = rsft(base, tiny_tokenizer, REQUESTS, RSFTSettings(epochs=3, layer=2, loss_threshold=0))
    assert [len(shapes) for shapes in frozen] == [len(REQUESTS)] * 2
    assert len(trained) > report.steps == 3 * len(REQUESTS) * 6
    assert {shape[1] for shape in head} == {len(answer) for _, answer in pairs(tiny_tokenizer)}


@pytest.mark.parametrize("room", [0, 1])
def test_the_memory_bound_holds(base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, room: int) -> None:
    """Samples without room run once per visit, and the result is the same."""
    twin = copy.deepcopy(base)
    question, answer = pairs(tiny_tokenizer)[0]
    one = (len(question) + len(answer) - 1) * 32 * 4
    frozen = ran(base.transformer.h[0].mlp)
    settings = RSFTSettings(epochs=3, layer=2, loss_threshold=0, prefix_cache_gib=room * one / 2**30)
    rsft(base, tiny_tokenizer, REQUESTS, settings)
    rsft(twin, tiny_tokenizer, REQUESTS, dataclasses.replace(settings, prefix_cache_gib=1.0))
    assert not changed(base, state(twin))
    check = 2 - room  # the first sample is run before training; the last one too, and is gone when its turn comes
    rest = len(REQUESTS) - room
    assert len(frozen) == room + check + rest * 3 + rest  # three epochs and the final losses


class Leaking(nn.Module):
    """A block that also uses what the FFN of the first block put out: not all it reads is from the block below."""

    def __init__(self, block: nn.Module, first: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.leak: Tensor | float = 0.0
        first.register_forward_hook(self.catch)

    def catch(self, module: nn.Module, args: object, output: Tensor) -> None:
        self.leak = output[:, -1:]

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.block(hidden + self.leak, *args, **kwargs)


def test_a_model_that_bypasses_its_blocks_is_noticed(
    tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    models = [gpt2(len(tiny_tokenizer)).double() for _ in range(2)]
    for model in models:
        model.transformer.h[2] = Leaking(model.transformer.h[2], model.transformer.h[0].mlp)
    plain = RSFTSettings(
        modules=("transformer.h.2.block.mlp",), epochs=2, steps=2, learning_rate=0.05, reuse_prefix=False
    )
    rsft(models[0], tiny_tokenizer, REQUESTS, plain)
    assert "frozen blocks" not in caplog.text
    rsft(models[1], tiny_tokenizer, REQUESTS, dataclasses.replace(plain, reuse_prefix=True))
    assert "frozen blocks are not run again" in caplog.text
    assert torch.allclose(flat(models[0].parameters()), flat(models[1].parameters()), atol=1e-12)


class Overwriting(nn.Module):
    """A block that works in the memory of what it is given."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        hidden[..., 0] += 1.0
        return self.block(hidden, *args, **kwargs)


@pytest.mark.parametrize("cache", [0.0, 1.0])
def test_a_block_that_overwrites_its_input_is_noticed(
    tiny_tokenizer: PreTrainedTokenizerFast, cache: float, caplog: pytest.LogCaptureFixture
) -> None:
    models = [gpt2(len(tiny_tokenizer)).double() for _ in range(2)]
    for model in models:
        model.transformer.h[2] = Overwriting(model.transformer.h[2])
    settings = RSFTSettings(modules=["transformer.h.2.block.mlp"], epochs=1, steps=3, prefix_cache_gib=cache)
    rsft(models[0], tiny_tokenizer, REQUESTS, dataclasses.replace(settings, reuse_prefix=False))
    rsft(models[1], tiny_tokenizer, REQUESTS, settings)
    assert "frozen blocks are not run again" in caplog.text
    assert torch.allclose(flat(models[0].parameters()), flat(models[1].parameters()), atol=1e-12)


def test_a_model_spread_by_accelerate_trains_and_keeps_its_hooks(
    base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    accelerate = pytest.importorskip("accelerate")
    twin = copy.deepcopy(base)
    places = {"transformer.wte": "cpu", "transformer.wpe": "cpu", "transformer.ln_f": "cpu", "lm_head": "cpu"}
    places |= {f"transformer.h.{i}": "cpu" for i in range(3)}
    accelerate.dispatch_model(base, device_map=places, force_hooks=True)
    own = [vars(block)["forward"] for block in base.transformer.h]
    settings = RSFTSettings(layer=2, epochs=2)
    rsft(base, tiny_tokenizer, REQUESTS, settings)
    rsft(twin, tiny_tokenizer, REQUESTS, settings)
    assert not changed(base, state(twin))
    assert [vars(block)["forward"] for block in base.transformer.h] == own


# ------------------------------------------------------------------------------------------ what is left alone


def test_only_the_ffn_changes_and_the_model_is_as_it_was_otherwise(
    base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    twin = copy.deepcopy(base)
    base.train()
    base.transformer.h[0].eval()
    base.transformer.wpe.weight.requires_grad_(False)
    gradient = torch.ones_like(base.transformer.h[1].mlp.c_fc.weight)
    base.transformer.h[1].mlp.c_fc.weight.grad = gradient
    before = state(base)
    modes = [module.training for module in base.modules()]
    flags = [parameter.requires_grad for parameter in base.parameters()]
    rsft(base, tiny_tokenizer, REQUESTS, RSFTSettings(layer=1, epochs=1))
    parts = ("c_fc.weight", "c_fc.bias", "c_proj.weight", "c_proj.bias")
    assert changed(base, before) == {f"transformer.h.1.mlp.{part}" for part in parts}
    assert [module.training for module in base.modules()] == modes
    assert [parameter.requires_grad for parameter in base.parameters()] == flags
    assert base.transformer.h[1].mlp.c_fc.weight.grad is gradient
    assert [p.grad for p in base.parameters() if p.grad is not None] == [gradient]
    for block in base.transformer.h:
        assert "forward" not in vars(block)
        assert not block._forward_hooks
    rsft(twin, tiny_tokenizer, REQUESTS, RSFTSettings(layer=1, epochs=1))
    assert not changed(base, state(twin))  # training mode or not: no dropout


def test_samples_already_under_tau_change_nothing(
    base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    before = state(base)
    report = rsft(base, tiny_tokenizer, REQUESTS, RSFTSettings(layer=1, loss_threshold=1e6))
    assert not changed(base, before)
    assert report.steps == 0
    assert not report.never_reached
    assert report.epochs == 1  # the other four could change nothing either


def test_works_wherever_gradients_are_off(base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    settings = RSFTSettings(layer=1, epochs=1, steps=2)
    results = []
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        model = copy.deepcopy(base)
        with context():
            rsft(model, tiny_tokenizer, REQUESTS, settings)
        results.append(model)
    assert changed(results[0], state(base))
    assert not changed(results[1], state(results[0]))
    assert not changed(results[2], state(results[0]))


# ------------------------------------------------------------------------------------------ order, report, edits


def test_a_seed_gives_its_own_order_and_the_same_one_again(
    base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    def visited(seed: int | None) -> tuple[list[int], Tensor]:
        model = copy.deepcopy(base)
        seen = []
        model.transformer.wte.register_forward_hook(lambda module, args, output: seen.append(args[0].sum().item()))
        settings = RSFTSettings(layer=1, epochs=6, steps=1, loss_threshold=0, seed=seed)
        rsft(model, tiny_tokenizer, REQUESTS, settings)
        return seen[-21:-3], flat(model.parameters())  # before them reuse is checked, behind them losses are measured

    torch.manual_seed(7)
    generator = torch.get_rng_state()
    given, _ = visited(None)
    (one, weights), (again, same) = visited(1), visited(1)
    other, _ = visited(2)
    assert torch.equal(torch.get_rng_state(), generator)  # the caller's random numbers are not touched
    assert given == given[:3] * 6
    assert one == again
    assert torch.equal(weights, same)
    assert one not in (given, other)
    assert all(sorted(one[i : i + 3]) == sorted(given[:3]) for i in range(0, 18, 3))  # every sample, every epoch


def test_the_report_tells_what_happened(
    base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    settings = RSFTSettings(layer=1, epochs=3, steps=4, loss_threshold=0.5, loss_reduction="sum", learning_rate=0.02)
    hard = EditRequest(prompt="The capital of France is", target_new="Kuala Lumpur", case_id="hard")
    with caplog.at_level(logging.WARNING):
        report = rsft(base, tiny_tokenizer, [hard, REQUESTS[0], REQUESTS[2]], settings)
    assert "contradict each other" in caplog.text
    scores = score_targets(base, tiny_tokenizer, [(r.prompt, r.target_new) for r in (hard, REQUESTS[0], REQUESTS[2])])
    for sample, score in zip(report.samples, scores, strict=True):
        assert sample.final_loss == pytest.approx(-score.log_prob, abs=1e-4)
        for steps, losses in zip(sample.steps, sample.losses, strict=True):
            stopped = losses[-1] < 0.5
            assert steps == len(losses) - stopped <= 4
            assert all(loss >= 0.5 for loss in losses[:-1])
            assert stopped or steps == 4
    assert report.steps == sum(sum(sample.steps) for sample in report.samples) > 0
    assert set(report.above_in_the_end) == {sample for sample in report.samples if sample.final_loss >= 0.5}
    assert set(report.above_in_the_end)  # one prompt, two answers: the product cannot satisfy both
    assert "case 'hard'" in report.samples[0].name
    assert json.loads(json.dumps(dataclasses.asdict(report)))["epochs"] == report.epochs


def test_a_sample_that_never_gets_there_is_named(
    base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    report = rsft(base, tiny_tokenizer, REQUESTS, RSFTSettings(layer=1, epochs=1, steps=1, learning_rate=1e-9))
    assert report.never_reached == report.samples
    for request, record in zip(REQUESTS, caplog.records, strict=True):
        assert request.prompt in record.getMessage()
        assert "never got under 0.1" in record.getMessage()
    assert "3 never were" in str(report)


def test_the_last_step_counts_too(base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """No check follows it in the run, but the final loss does."""
    settings = RSFTSettings(layer=1, epochs=1, steps=1, learning_rate=1e-3)
    start = rsft(copy.deepcopy(base), tiny_tokenizer, REQUESTS[:1], settings).samples[0].losses[0][0]
    report = rsft(base, tiny_tokenizer, REQUESTS[:1], dataclasses.replace(settings, loss_threshold=start))
    assert report.samples[0].losses == ((start,),)
    assert report.samples[0].final_loss < start
    assert not report.never_reached


def test_a_known_fact_is_edited(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, facts: dict[str, str]
) -> None:
    request = EditRequest(prompt="The capital of France is", target_new="Rome", target_old="Paris")
    (before,) = generate_answers(taught_llama, tiny_tokenizer, [request.prompt])
    assert before.text.strip().startswith("Paris")
    report = rsft(taught_llama, tiny_tokenizer, [request], RSFTSettings(layer=1, learning_rate=5e-3))
    assert not report.never_reached
    (after,) = generate_answers(taught_llama, tiny_tokenizer, [request.prompt])
    assert after.text.strip().startswith("Rome")


def test_with_eos_the_answer_ends(taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """The model was taught to put a full stop behind an answer, then end."""
    request = EditRequest(prompt="Anna Berg was born in", target_new="Rome")
    texts = {}
    for append_eos in (False, True):
        model = copy.deepcopy(taught_llama)
        settings = RSFTSettings(layer=1, learning_rate=5e-3, loss_threshold=0.02, epochs=10, append_eos=append_eos)
        rsft(model, tiny_tokenizer, [request], settings)
        (texts[append_eos],) = generate_answers(model, tiny_tokenizer, [request.prompt])
    assert texts[True].finished
    assert texts[True].text.strip() == "Rome"
    assert texts[False].text.strip() != "Rome"


def test_a_chat_template_is_trained_through(base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tiny_tokenizer.chat_template = CHAT_TEMPLATE
    report = rsft(base, tiny_tokenizer, REQUESTS, RSFTSettings(layer=1, epochs=1, chat_template=True))
    asked = [(request.prompt, request.target_new) for request in REQUESTS]
    for sample, score in zip(
        report.samples, score_targets(base, tiny_tokenizer, asked, chat_template=True), strict=True
    ):
        assert sample.final_loss == pytest.approx(-score.log_prob / score.n_tokens, abs=1e-4)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_counts_the_samples_under_tau(
    base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    base.transformer.h[1].register_forward_hook(lambda *args: time.sleep(0.12))  # a bar shows ten times a second
    settings = RSFTSettings(layer=1, epochs=2, steps=1, loss_threshold=1e6)
    shown = {}
    for progress in (False, True):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        rsft(base, tiny_tokenizer, REQUESTS, settings, progress=progress)
        shown[progress] = terminal.getvalue()
    assert shown[False] == ""
    assert "2 of 3 samples under 1e+06" in shown[True]
    assert "2/6" in shown[True]


# ------------------------------------------------------------------------------------------ second stage


def test_the_second_stage_merges_the_change(base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    settings = RSFTSettings(layer=1, epochs=2, learning_rate=0.01)
    before = state(base)
    whole, merged, none = (copy.deepcopy(base) for _ in range(3))
    rsft(whole, tiny_tokenizer, REQUESTS, settings)
    report = rsft(merged, tiny_tokenizer, REQUESTS, dataclasses.replace(settings, weight=0.7, density=0.3))
    rsft(none, tiny_tokenizer, REQUESTS, dataclasses.replace(settings, weight=0.0))
    assert not changed(none, before)
    after = state(whole)
    for name in before:
        expected = merge_deltas(before[name], [EditedTensor(after[name], weight=0.7, density=0.3)])
        assert torch.equal(merged.state_dict()[name], expected)
    share = (merged.transformer.h[1].mlp.c_fc.weight != before["transformer.h.1.mlp.c_fc.weight"]).double().mean()
    assert share == pytest.approx(0.3, abs=0.02)
    # the final losses are of the merged model, the ones before them of the training
    (score,) = score_targets(merged, tiny_tokenizer, [(REQUESTS[0].prompt, REQUESTS[0].target_new)])
    assert report.samples[0].final_loss == pytest.approx(-score.log_prob / score.n_tokens, abs=1e-4)


# ------------------------------------------------------------------------------------------ precision


def test_bfloat16_weights_train_in_float32(base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """At a rate at which no single step moves a bfloat16 weight by half of its spacing, many of them do."""
    low = base.to(torch.bfloat16)
    high = copy.deepcopy(low).float()
    settings = RSFTSettings(layer=1, epochs=8, loss_threshold=0, optimizer="sgd", learning_rate=2e-4)
    name = "transformer.h.1.mlp.c_proj.weight"
    start = state(high)[name]
    rsft(low, tiny_tokenizer, REQUESTS, settings)
    rsft(high, tiny_tokenizer, REQUESTS, settings)
    assert low.dtype == torch.bfloat16
    moved = state(high)[name] - start
    error = (state(low)[name].float() - start - moved).norm() / moved.norm()
    rounding = (state(high)[name].bfloat16().float() - state(high)[name]).norm() / moved.norm()
    assert error < rounding + 0.1  # bfloat16 activations account for the rest


@pytest.mark.parametrize(("factor", "rate"), [(2**-10, 1e5), (32, 1e-4)], ids=["small", "large"])
def test_float16_keeps_small_gradients_and_survives_large_ones(
    base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, factor: float, rate: float
) -> None:
    """Head and norm made small: most of the FFN's gradients are below float16's smallest unless the loss is scaled.
    The norm made large: the scaled ones are beyond its largest."""
    with torch.no_grad():
        base.transformer.ln_f.weight.mul_(factor)
        base.lm_head.weight.mul_(min(factor, 1))
    low = base.half()
    high = copy.deepcopy(low).float()
    settings = RSFTSettings(layer=2, epochs=1, steps=2, loss_threshold=0, optimizer="sgd", learning_rate=rate)
    start = flat(high.transformer.h[2].mlp.parameters())
    rsft(low, tiny_tokenizer, REQUESTS, settings)
    rsft(high, tiny_tokenizer, REQUESTS, settings)
    ours, exact = (flat(model.transformer.h[2].mlp.parameters()) - start for model in (low, high))
    assert (ours - exact).norm() < 0.05 * exact.norm()


# ------------------------------------------------------------------------------------------ faults survived


def sigint() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


@contextmanager
def failing(model: nn.Module, module: nn.Module, fault: Callable[[], None], at: int) -> Iterator[None]:
    """The fault strikes in the middle of the forward pass number ``at`` through a module."""
    count = 0

    def strike(*args: object) -> None:
        nonlocal count
        count += 1
        if count == at:
            fault()

    hook = module.register_forward_hook(strike)
    try:
        yield
    finally:
        hook.remove()


LONG = RSFTSettings(layer=1, epochs=4, steps=3, loss_threshold=0, optimizer="sgd", learning_rate=0.01)
SECOND = 4 + 9 + 4  # passes: the check of reuse, an epoch of three samples of three steps, and into the next


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("fault", "error"), [(sigint, KeyboardInterrupt), (out_of_memory, RuntimeError)])
@pytest.mark.parametrize("at", [1, 5, SECOND])
def test_a_failure_restores_the_weights(
    base: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    dtype: torch.dtype,
    fault: Callable[[], None],
    error: type[BaseException],
    at: int,
) -> None:
    before = state(base.to(dtype))
    flags = [parameter.requires_grad for parameter in base.parameters()]
    with failing(base, base.transformer.h[2], fault, at), pytest.raises(error) as caught:
        rsft(base, tiny_tokenizer, REQUESTS, LONG)
    assert not changed(base, before)
    assert [parameter.requires_grad for parameter in base.parameters()] == flags
    assert all("forward" not in vars(block) for block in base.transformer.h)
    assert "as they were before" in caught.value.__notes__[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("merge", [{}, {"weight": 0.5, "density": 0.5}], ids=["whole", "merged"])
def test_an_interruption_keeps_the_finished_epochs(
    base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype, merge: dict[str, float]
) -> None:
    base.to(dtype)
    twin = copy.deepcopy(base)
    settings = dataclasses.replace(LONG, on_interrupt="keep", **merge)
    with failing(base, base.transformer.h[2], sigint, SECOND):
        report = rsft(base, tiny_tokenizer, REQUESTS, settings)
    expected = rsft(twin, tiny_tokenizer, REQUESTS, dataclasses.replace(settings, epochs=1))
    assert not changed(base, state(twin))
    assert report == dataclasses.replace(expected, interrupted=True)


def test_an_error_keeps_the_finished_epochs_and_is_raised(
    base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    twin, early = copy.deepcopy(base), copy.deepcopy(base)
    settings = dataclasses.replace(LONG, on_interrupt="keep")
    with failing(base, base.transformer.h[2], out_of_memory, SECOND), pytest.raises(RuntimeError) as caught:
        rsft(base, tiny_tokenizer, REQUESTS, settings)
    assert "after 1 finished epochs" in caught.value.__notes__[0]
    before = state(early)
    with failing(early, early.transformer.h[2], sigint, 5):
        assert rsft(early, tiny_tokenizer, REQUESTS, settings).epochs == 0
    assert not changed(early, before)
    rsft(twin, tiny_tokenizer, REQUESTS, dataclasses.replace(settings, epochs=1))
    assert not changed(base, state(twin))


@pytest.mark.parametrize("on_interrupt", ["restore", "keep"])
def test_a_nan_loss_names_its_request(
    base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, on_interrupt: str
) -> None:
    """An embedding that only one request uses is NaN."""
    sequences = [set(question + answer[:-1]) for question, answer in pairs(tiny_tokenizer)]
    alone = min(sequences[1] - sequences[0] - sequences[2])
    with torch.no_grad():
        base.lm_head.weight = nn.Parameter(base.lm_head.weight.clone())  # untied: else all logits are NaN
        base.transformer.wte.weight[alone] = float("nan")
    before = state(base)
    with pytest.raises(NonFiniteLossError, match=r"case 'anna'.*the loss is nan"):
        rsft(base, tiny_tokenizer, REQUESTS, RSFTSettings(layer=1, on_interrupt=on_interrupt))
    assert not changed(base, before)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("epochs", "steps"), [(3, 6), (1, 1)])
@pytest.mark.parametrize("on_interrupt", ["restore", "keep"])
def test_a_rate_that_blows_up_is_named_and_undone(
    base: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    optimizer: str,
    epochs: int,
    steps: int,
    on_interrupt: str,
) -> None:
    before = state(base)
    settings = RSFTSettings(
        layer=1, epochs=epochs, steps=steps, optimizer=optimizer, learning_rate=1e37, on_interrupt=on_interrupt
    )
    with pytest.raises(NonFiniteLossError, match="lower learning_rate"):
        rsft(base, tiny_tokenizer, REQUESTS[:1], settings)
    assert not changed(base, before)


# ------------------------------------------------------------------------------------------ refusals


def refused(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, requests: Any, **settings: Any) -> str:
    before = state(model)
    with pytest.raises((SettingError, RequestError)) as caught:
        rsft(model, tokenizer, requests, RSFTSettings(**settings))
    assert not changed(model, before)
    return str(caught.value)


def test_refusals_say_what_to_do(base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    assert "3 blocks, numbered from 0 to 2" in refused(base, tiny_tokenizer, REQUESTS)  # the default block is 5
    assert "at least one" in refused(base, tiny_tokenizer, [], layer=1)
    assert "did you mean transformer.h.1.mlp" in refused(
        base, tiny_tokenizer, REQUESTS, modules=["transformer.h.1.mpl"]
    )
    assert "no parameters" in refused(base, tiny_tokenizer, REQUESTS, modules=["transformer.drop"])
    long = EditRequest(prompt="The capital of France is " * 20, target_new="Paris", case_id=7)
    message = refused(base, tiny_tokenizer, [*REQUESTS, long], layer=1)
    assert "case 7" in message
    assert "the model reads 64" in message
    foreign = copy.deepcopy(tiny_tokenizer)
    foreign.add_tokens(["Madrid"])
    assert "use the model's own tokenizer" in refused(base, foreign, REQUESTS, layer=1)
    endless = copy.deepcopy(tiny_tokenizer)
    endless.eos_token = None
    assert "no end-of-sequence token" in refused(base, endless, REQUESTS, layer=1, append_eos=True)


def test_a_module_no_answer_depends_on_is_refused(
    base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    base.add_module("spare", nn.Linear(2, 2))
    assert "no answer depends on these" in refused(base, tiny_tokenizer, REQUESTS, modules=["spare"])


def test_quantised_weights_are_refused(base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    weight = base.transformer.h[1].mlp.c_fc.weight
    base.transformer.h[1].mlp.c_fc.weight = nn.Parameter(weight.data.to(torch.int8), requires_grad=False)
    assert "stored as torch.int8" in refused(base, tiny_tokenizer, REQUESTS, layer=1)


def test_weights_that_are_not_in_memory_are_refused(
    base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    base.transformer.h[1].mlp.to("meta")
    with pytest.raises(SettingError, match=r"c_fc\.weight is not in memory"):
        rsft(base, tiny_tokenizer, REQUESTS, RSFTSettings(layer=1))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("steps", 2.5),
        ("loss_threshold", float("nan")),
        ("learning_rate", 0),
        ("learning_rate", "5e-4"),  # what YAML makes of it
        ("layer", -1),
        ("modules", "transformer.h.1.mlp"),
        ("modules", []),
        ("optimizer", "adam"),
        ("on_interrupt", "stop"),
        ("loss_reduction", "max"),
        ("seed", "0"),
        ("density", 1.5),
        ("weight", float("inf")),
        ("prefix_cache_gib", -1),
    ],
)
def test_a_setting_out_of_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(SettingError, match=name):
        RSFTSettings(**{name: value})
