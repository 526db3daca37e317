"""What cannot be edited is refused and named before anything is done."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from corsa_plugins.alphaedit import AlphaEditor
from corsa_plugins.alphaedit.checks import editable_maps
from corsa_plugins.data.requests import EditRequest, Probe, RequestError
from corsa_plugins.errors import SettingError
from corsa_plugins.model.architecture import find_architecture
from tests.fixtures.alphaedit import QUICK, REQUESTS, SETTINGS, Bench, prompt_of_length


def test_what_the_model_cannot_read_is_named(gpt2_bench: Bench) -> None:
    subject = gpt2_bench.editor(QUICK)
    long = prompt_of_length(gpt2_bench, 150)
    request = EditRequest(prompt=long, target_new="Rome", subject="France", case_id="long")
    with pytest.raises(RequestError, match=r"case 'long'.* and the model reads 128"):
        subject.edit([REQUESTS[0], request])
    validated = REQUESTS[0].model_copy(update={"validation_prompts": (long,)})
    with pytest.raises(RequestError, match=r"2 prompts to validate on are too long") as caught:
        subject.edit([validated], keep=[Probe(prompt="Rome is in", answer="Italy"), Probe(prompt=long, answer="Rome")])
    assert "case 'france'" in str(caught.value)
    assert "keep[1]" in str(caught.value)
    subject.settings = replace(QUICK, smoothing=None)
    subject.edit([validated], answers=False)


def test_requests_and_probes_that_cannot_be_edited(llama_bench: Bench, gpt2_bench: Bench) -> None:
    subject = llama_bench.editor()
    with pytest.raises(RequestError, match="no edit requests"):
        subject.edit([])
    with pytest.raises(RequestError, match=r"case 'x'.*has no subject"):
        subject.edit([EditRequest(prompt="a b", target_new="c", case_id="x")])
    with pytest.raises(RequestError, match=r"keep\[0\].*has no answer"):
        subject.edit(REQUESTS, keep=[Probe(prompt="Rome is in")])
    with pytest.raises(SettingError, match="the model has 3 blocks"):
        llama_bench.editor(layers=(0, 7))
    with pytest.raises(SettingError, match="no statistics"):
        AlphaEditor(gpt2_bench.model, gpt2_bench.tokenizer, None, SETTINGS).edit(REQUESTS)


def test_weights_without_values_are_refused(llama_bench: Bench) -> None:
    down: Any = llama_bench.model.model.layers[1].mlp.down_proj
    down.weight = torch.nn.Parameter(torch.zeros(32, 64, device="meta"), requires_grad=False)
    with pytest.raises(SettingError, match=r"layers\.1\.mlp\.down_proj is .*without values"):
        editable_maps(find_architecture(llama_bench.model), (0, 1))


def test_a_weight_of_two_blocks_is_refused(llama_bench: Bench) -> None:
    blocks = llama_bench.model.model.layers
    blocks[1].mlp.down_proj.weight = blocks[0].mlp.down_proj.weight
    for layers in ((0, 1), (1,)):
        with pytest.raises(SettingError, match=r"layers\.0\.mlp\.down_proj\.weight and .* are one weight"):
            AlphaEditor(llama_bench.model, llama_bench.tokenizer, None, replace(QUICK, layers=layers))
