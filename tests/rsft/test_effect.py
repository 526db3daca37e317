"""Whether the requests are said in the end, what the second stage undid, and the density that undoes nothing."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.data.requests import EditRequest
from corsa_plugins.model.asking import score_targets
from corsa_plugins.rsft import RSFTReport, RSFTSettings, rsft
from corsa_plugins.rsft.settings import AUTO_DENSITIES
from tests.support.small_plans import BORN, FRANCE, ITALY
from tests.support.training import changed, state

SETTINGS = RSFTSettings(layer=1, learning_rate=5e-3)
ALL = [FRANCE, ITALY, BORN]


def said(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, requests: list[EditRequest]) -> list[bool]:
    return [score.top1 for score in score_targets(model, tokenizer, [(r.prompt, r.target_new) for r in requests])]


@pytest.mark.parametrize("merging", [{}, {"weight": 0.8, "density": 0.2}, {"weight": 0.8, "density": "auto"}])
@pytest.mark.parametrize("append_eos", [False, True])
def test_what_is_said_is_what_the_model_says(
    merging: dict, append_eos: bool, taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    settings = replace(SETTINGS, append_eos=append_eos)
    trained = copy.deepcopy(taught_llama)
    rsft(trained, tiny_tokenizer, ALL, settings)
    report = rsft(taught_llama, tiny_tokenizer, ALL, replace(settings, **merging))
    assert [sample.said for sample in report.samples] == said(taught_llama, tiny_tokenizer, ALL)
    assert [sample.said_in_training for sample in report.samples] == said(trained, tiny_tokenizer, ALL)


def test_an_edit_that_the_second_stage_undoes_is_reported(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    before = state(taught_llama)
    with caplog.at_level(logging.WARNING):
        report = rsft(taught_llama, tiny_tokenizer, [FRANCE], replace(SETTINGS, weight=0.8, density=0.2))
    assert said(taught_llama, tiny_tokenizer, [FRANCE]) == [False]
    assert report.undone == report.samples
    assert report.samples[0].verdict == "reached in training, undone by the second stage"
    text = "0 of 1 requests said: 1 reached in training, undone by keeping 20 % of the change, scaled by 0.8"
    assert text in caplog.text
    assert text in report.effect in str(report)
    assert 'a higher density, or "auto", or more requests at once' in report.effect
    trained = report.parameters
    moved = sum(int((taught_llama.get_parameter(name) != before[name]).sum()) for name in trained)
    assert report.changed == moved / sum(before[name].numel() for name in trained) == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("requests", [[FRANCE], ALL], ids=len)
def test_auto_is_the_smallest_density_that_undoes_nothing(
    requests: list[EditRequest],
    taught_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Found by trying each density in a run of its own, from the training on."""

    def run(density: float | str) -> tuple[LlamaForCausalLM, RSFTReport]:
        model = copy.deepcopy(taught_llama)
        return model, rsft(model, tiny_tokenizer, requests, replace(SETTINGS, weight=0.8, density=density))

    counts = {density: run(density)[1].said for density in AUTO_DENSITIES}
    smallest = next(density for density in AUTO_DENSITIES if counts[density] == len(requests))
    assert AUTO_DENSITIES[0] < smallest < 1
    caplog.clear()
    model, report = run("auto")
    assert not caplog.records
    assert report.density == smallest
    assert dict(report.tried) == {density: n for density, n in counts.items() if density <= smallest}
    assert not changed(model, state(run(smallest)[0]))


def test_auto_takes_the_least_loss_where_every_density_undoes_something(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    settings = replace(SETTINGS, weight=0.05, density="auto")
    twin = copy.deepcopy(taught_llama)
    report = rsft(taught_llama, tiny_tokenizer, ALL, settings)
    assert [density for density, _ in report.tried] == list(AUTO_DENSITIES)
    most = max(count for _, count in report.tried)
    assert most < len(ALL)
    assert report.density == next(density for density, count in report.tried if count == most)
    assert "a higher weight" in report.effect
    rsft(twin, tiny_tokenizer, ALL, replace(settings, density=report.density))
    assert not changed(taught_llama, state(twin))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"learning_rate": 1e-30, "optimizer": "sgd"}, "no weight changed by enough to be stored"),
        ({"loss_threshold": 1e6}, "no step was taken"),
    ],
)
def test_a_run_that_left_the_model_as_it_was_says_so(
    settings: dict, why: str, taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    low = taught_llama.to(torch.bfloat16)
    before = state(low)
    report = rsft(low, tiny_tokenizer, ALL, replace(SETTINGS, epochs=1, **settings))
    assert not changed(low, before)
    assert report.changed == 0
    assert f"0 of 3 requests said: {why}, and the model is as it was, bit for bit" in report.effect


def test_a_fact_that_is_learned_is_no_warning(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        report = rsft(taught_llama, tiny_tokenizer, [FRANCE], SETTINGS)
    assert report.effect == "1 of 1 requests said"
    assert report.samples[0].verdict == "said"
    assert not caplog.records


def test_an_answer_without_tokens_is_never_said(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Its unknown token may be trained, and is no answer."""
    tiny_tokenizer.add_special_tokens({"unk_token": "</s>"})
    odd = EditRequest(prompt=FRANCE.prompt, target_new="</s>")
    report = rsft(taught_llama, tiny_tokenizer, [odd], replace(SETTINGS, epochs=30))
    assert report.samples[0].final_loss < 0.3
    assert not report.samples[0].said
    assert said(taught_llama, tiny_tokenizer, [odd]) == [False]
