"""A small GPT-2 in float64 and a small Llama, with statistics of their keys."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from corsa_plugins.alphaedit import (
    AlphaEditor,
    AlphaEditSettings,
    NullSpaceRule,
    SearchSettings,
    SmoothingSettings,
    ValueSettings,
)
from corsa_plugins.alphaedit.statistics.collect import collect_statistics
from corsa_plugins.alphaedit.statistics.statistics import KeyStatistics
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.testbed import load_testbed
from tests.conftest import TEXTS

SETTINGS = AlphaEditSettings(
    layers=(0, 1),
    null_space=NullSpaceRule("share", 0.4),
    values=ValueSettings(steps=12, lr=0.5, lr_unit="relative", clamp=4.0, batch_size=4),
    ridge=0.1,
    ridge_unit="relative",
    prior_weight=3.0,
    search=SearchSettings(threshold=1e-3),
    smoothing=SmoothingSettings(steps=4, share=0.4, selection="best"),
    validation_score="probability",
    n_contexts=2,
    context_length=4,
)

REQUESTS = [
    EditRequest(prompt="The capital of France is", target_new="Rome", subject="France", case_id="france"),
    EditRequest(prompt="Anna Berg was born in", target_new="Madrid", subject="Anna Berg", case_id="berg"),
    EditRequest(
        prompt="The capital of Spain is",
        target_new="Kuala Lumpur",
        subject="Spain",
        case_id="spain",
        validation_prompts=("Spain has the capital",),
    ),
]
LATER = [
    EditRequest(prompt="The capital of Italy is", target_new="Oslo", subject="Italy", case_id="italy"),
    EditRequest(prompt="What is the capital of France?", target_new="Oslo", subject="France", case_id="again"),
]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A model with what an editor needs of it."""

    model: Any
    tokenizer: PreTrainedTokenizerFast
    statistics: KeyStatistics
    settings: AlphaEditSettings = SETTINGS

    def editor(self, settings: AlphaEditSettings | None = None, **changes: Any) -> AlphaEditor:
        return AlphaEditor(self.model, self.tokenizer, self.statistics, replace(settings or self.settings, **changes))

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}


@dataclass(frozen=True, kw_only=True)
class TestbedBench(Bench):
    """The testbed, with some of its edits."""

    __test__ = False  # not a test class, whatever pytest thinks of the name

    requests: list[EditRequest]

    def weight(self) -> torch.Tensor:
        return self.model.model.layers[0].mlp.down_proj.weight.detach().clone()


def gpt2(vocabulary: int, seed: int = 0) -> GPT2LMHeadModel:
    """A random GPT-2 in float64, in evaluation mode."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_embd=32,
        n_inner=48,
        n_layer=3,
        n_head=4,
        n_positions=128,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        initializer_range=0.2,
    )
    return GPT2LMHeadModel(config).double().eval()


@pytest.fixture(scope="session")
def _session_gpt2(_session_tokenizer: PreTrainedTokenizerFast) -> Bench:
    model = gpt2(len(_session_tokenizer))
    statistics = collect_statistics(model, _session_tokenizer, TEXTS, (0, 1), n_tokens=10**6, sample_size=64)
    return Bench(model=model, tokenizer=_session_tokenizer, statistics=statistics)


@pytest.fixture
def gpt2_bench(_session_gpt2: Bench) -> Bench:
    """GPT-2 in float64, the test's own copy."""
    return replace(_session_gpt2, model=copy.deepcopy(_session_gpt2.model))


@pytest.fixture(scope="session")
def _taught_statistics(_session_taught: Any, _session_tokenizer: PreTrainedTokenizerFast) -> KeyStatistics:
    return collect_statistics(_session_taught, _session_tokenizer, TEXTS, (0, 1), n_tokens=10**6, sample_size=64)


@pytest.fixture
def llama_bench(taught_llama: Any, tiny_tokenizer: PreTrainedTokenizerFast, _taught_statistics: KeyStatistics) -> Bench:
    """A Llama in float32 that knows a few facts, the test's own copy."""
    return Bench(model=taught_llama, tokenizer=tiny_tokenizer, statistics=_taught_statistics)


@pytest.fixture(scope="session")
def _session_testbed() -> TestbedBench:
    bed = load_testbed()
    people = bed.world.people[::4]
    texts = [
        f"{bed.world.prompts(fact)} {fact.answer}." for person in people for fact in bed.world.facts_of[person.name]
    ]
    statistics = collect_statistics(bed.model, bed.tokenizer, texts, (0,), n_tokens=10**6, pack=False, batch_size=64)
    return TestbedBench(
        model=bed.model,
        tokenizer=bed.tokenizer,
        statistics=statistics,
        settings=AlphaEditSettings.load("testbed"),
        requests=bed.world.edit_rounds(n_rounds=1, size=10, seed=0, untouched=0).rounds[0],
    )


@pytest.fixture
def testbed_bench(_session_testbed: TestbedBench) -> TestbedBench:
    """The testbed, the test's own copy, with statistics of its first layer."""
    return replace(_session_testbed, model=copy.deepcopy(_session_testbed.model))
