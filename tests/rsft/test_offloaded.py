"""R-SFT of a model that lies partly on disk is R-SFT of the model in one place."""

from __future__ import annotations

import pytest
import torch

from corsa_plugins.model.placement import named_values
from corsa_plugins.rsft import RSFTSettings, rsft
from tests.fixtures.alphaedit import REQUESTS
from tests.support.placed import in_parts, weights_kept

pytest.importorskip("accelerate")


@pytest.mark.parametrize(
    "settings", [{"layer": 0}, {"layer": 1, "weight": 0.8, "density": 0.2}, {"modules": ("lm_head",)}]
)
def test_the_same_is_learned(settings, taught_llama, tiny_tokenizer, tmp_path):
    parts = in_parts(taught_llama, tiny_tokenizer, tmp_path / "model")
    before = {name: value.clone() for name, value in named_values(parts)}
    chosen = RSFTSettings(**settings, learning_rate=1e-3, epochs=2, steps=2)
    reports = [rsft(model, tiny_tokenizer, REQUESTS, chosen) for model in (parts, taught_llama)]
    assert reports[0] == reports[1]
    after = dict(named_values(parts))
    for name, value in taught_llama.named_parameters():
        assert torch.equal(after[name], value), name
    assert any(not torch.equal(value, before[name]) for name, value in after.items())
    assert parts.model.embed_tokens.weight.is_meta
    assert all(parameter.requires_grad for parameter in parts.parameters())


def test_no_weight_that_was_fetched_is_kept_for_a_gradient(taught_llama, tiny_tokenizer, tmp_path):
    parts = in_parts(taught_llama, tiny_tokenizer, tmp_path / "model", kept=0)
    with weights_kept(taught_llama) as kept:
        rsft(parts, tiny_tokenizer, REQUESTS, RSFTSettings(layer=0, learning_rate=1e-3, epochs=1, steps=1))
    in_memory = {name for name, parameter in parts.named_parameters() if not parameter.is_meta}
    assert kept
    assert kept <= in_memory
