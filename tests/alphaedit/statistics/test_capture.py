"""Keys are taken where they are whole and the model runs no further."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from corsa_plugins.alphaedit.statistics.capture import BrokenKeysError
from corsa_plugins.alphaedit.statistics.collect import collect_statistics
from corsa_plugins.errors import CorsaError
from corsa_plugins.model.architecture import find_architecture
from tests.conftest import DOCUMENTS
from tests.support.collecting import tiny_gpt2


def test_nothing_above_the_highest_layer_runs_and_the_model_is_as_before(tiny_tokenizer):
    model = tiny_gpt2(len(tiny_tokenizer)).train()
    run = Counter()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _, args, output, name=name: run.update([name]))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    collect_statistics(model, tiny_tokenizer, DOCUMENTS, (1,), n_tokens=100, length=32)
    assert run["transformer.h.0.mlp.c_proj"]
    assert not any(run[name] for name in ("transformer.h.1.mlp.c_proj", "transformer.h.2.ln_1", "lm_head"))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_keys_name_their_layer(tiny_llama, tiny_tokenizer, value):
    with torch.no_grad():
        tiny_llama.model.layers[1].mlp.up_proj.weight[3, 3] = value
    architecture = find_architecture(tiny_llama)
    from corsa_plugins.alphaedit.statistics.capture import KeyCapture

    maps = {layer: architecture.ffn(layer).down for layer in (0, 1)}
    with torch.no_grad(), KeyCapture(tiny_llama, maps) as capture, pytest.raises(BrokenKeysError, match="layer 1: "):
        capture.keys([[1, 2, 3]])
    with pytest.raises(CorsaError, match=r"layer(s\.| )1"):
        collect_statistics(tiny_llama, tiny_tokenizer, DOCUMENTS, (0, 1), n_tokens=640)
