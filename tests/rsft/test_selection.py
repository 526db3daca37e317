"""What trains: one FFN or what is named, and nothing else."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from corsa_plugins.errors import SettingError
from corsa_plugins.model.architecture import ArchitectureError
from corsa_plugins.rsft import RSFTSettings, rsft, trainable_parameters
from tests.model.test_architecture import build
from tests.support.families import family
from tests.support.mixtures import MIXTURES, listed_experts
from tests.support.rsft_oracle import SGD, compare
from tests.support.training import FLOAT64, REQUESTS, changed, refused, state


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


def test_of_an_ffn_that_is_no_module_its_maps_train_and_nothing_else_of_the_block(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = family("opt", len(tiny_tokenizer))
    before = state(model)
    rsft(model, tiny_tokenizer, REQUESTS, RSFTSettings(layer=1, epochs=1))
    parts = [f"fc{number}.{part}" for number in (1, 2) for part in ("weight", "bias")]
    assert changed(model, before) == {f"model.decoder.layers.1.{part}" for part in parts}


@pytest.mark.parametrize(("name", "bias"), [("mixtral", ()), ("gpt_oss", ("gate_up_proj_bias", "down_proj_bias"))])
def test_of_a_mixture_without_a_shared_expert_the_routed_ones_train_and_never_what_routes(
    name: str, bias: tuple[str, ...], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = build(MIXTURES[name][0](vocab_size=len(tiny_tokenizer), initializer_range=0.2))
    before = state(model)
    rsft(model, tiny_tokenizer, REQUESTS, RSFTSettings(layer=1, epochs=1))
    experts = ("gate_up_proj", "down_proj", *bias)
    assert changed(model, before) == {f"model.layers.1.mlp.experts.{part}" for part in experts}


def test_of_experts_in_a_list_each_one_trains(base: PreTrainedModel) -> None:
    width = base.config.hidden_size
    base.transformer.h[1].mlp = listed_experts(width)
    names = trainable_parameters(base, RSFTSettings(layer=1))
    assert {name.split(".mlp.")[1].rpartition(".")[0] for name in names} == {
        f"experts.{number}.{part}" for number in (0, 1) for part in (0, 2)
    }
    base.transformer.h[1].mlp = nn.Sequential(nn.Linear(width, width))
    with pytest.raises(ArchitectureError, match=r"transformer\.h\.1\.mlp \(Sequential\) has 1 linear map,"):
        trainable_parameters(base, RSFTSettings(layer=1))


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


def test_the_block_follows_from_the_depth(base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    blocks = {n: RSFTSettings().layer_of(n) for n in (1, 3, 4, 12, 28, 30, 32, 48)}
    assert blocks == {1: 0, 3: 0, 4: 1, 12: 2, 28: 4, 30: 5, 32: 5, 48: 8}
    assert RSFTSettings(layer=7).layer_of(4) == 7  # what is asked for is not made to fit
    trained = trainable_parameters(base, RSFTSettings())
    assert trained
    assert all(name.startswith("transformer.h.0.mlp.") for name in trained)


def test_what_is_not_there_is_refused(base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    assert "3 blocks, numbered from 0 to 2" in refused(base, tiny_tokenizer, REQUESTS, layer=5)
    assert "did you mean transformer.h.1.mlp" in refused(
        base, tiny_tokenizer, REQUESTS, modules=["transformer.h.1.mpl"]
    )
    assert "no parameters" in refused(base, tiny_tokenizer, REQUESTS, modules=["transformer.drop"])


def test_quantised_weights_are_refused(base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    weight = base.transformer.h[1].mlp.c_fc.weight
    base.transformer.h[1].mlp.c_fc.weight = nn.Parameter(weight.data.to(torch.int8), requires_grad=False)
    assert "stored as torch.int8" in refused(base, tiny_tokenizer, REQUESTS, layer=1)


def test_weights_that_are_not_in_memory_are_refused(
    base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    base.transformer.h[1].mlp.to("meta")
    with pytest.raises(SettingError, match=r"c_fc\.weight is on meta, without values"):
        rsft(base, tiny_tokenizer, REQUESTS, RSFTSettings(layer=1))
