"""Equal to Algorithm 1, in the order asked for."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from corsa_plugins.data.requests import EditRequest
from corsa_plugins.model.asking import generate_answers
from corsa_plugins.rsft import RSFTSettings, rsft
from tests.oracles import rsft as oracle
from tests.support.rsft_oracle import ADAMW, SGD, compare, steps_of
from tests.support.training import FLOAT32_NORMS, FLOAT64, REQUESTS, changed, flat, pairs, state


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
    (first, weights), (again, same) = visited(1), visited(1)
    other, _ = visited(2)
    assert torch.equal(torch.get_rng_state(), generator)  # the caller's random numbers are not touched
    assert given == given[:3] * 6
    assert first == again
    assert torch.equal(weights, same)
    assert first not in (given, other)
    assert all(sorted(first[i : i + 3]) == sorted(given[:3]) for i in range(0, 18, 3))  # every sample, every epoch


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
