"""Batches go out again in any order, and layers may differ between them."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest
import torch

from corsa_plugins.errors import SettingError
from tests.fixtures.alphaedit import LATER, QUICK, REQUESTS, Bench


@pytest.mark.parametrize("order", list(permutations(("1", "2", "3"))))
def test_reverting_in_any_order_restores_exactly(llama_bench: Bench, order: tuple[str, ...]) -> None:
    before = llama_bench.weights()
    editor = llama_bench.editor(n_contexts=0)
    for request in REQUESTS:
        editor.edit([request], answers=False)
    middle = llama_bench.weights()
    assert not torch.equal(middle["model.layers.0.mlp.down_proj.weight"], before["model.layers.0.mlp.down_proj.weight"])
    for left, name in zip((2, 1, 0), order, strict=True):
        editor.revert(name)
        assert editor.state.prior_keys(0, 64).shape == (64, left)
        assert name not in [batch.name for batch in editor.state.batches]
    assert llama_bench.holds(before)


def test_what_remains_after_a_revert_is_as_if_summed_anew(llama_bench: Bench) -> None:
    editor = llama_bench.editor(n_contexts=0)
    for request in REQUESTS:
        editor.edit([request], answers=False)
    editor.revert("2")
    state = editor.state
    for layer in (0, 1):
        expected = state.originals[layer].double()
        for batch in state.batches:
            expected = expected + batch.layers[layer].left.double() @ batch.layers[layer].right.double().T
        weight = llama_bench.model.model.layers[layer].mlp.down_proj.weight
        assert torch.equal(weight, expected.float())


def test_layers_may_differ_between_batches(llama_bench: Bench) -> None:
    """Each layer has its own earlier edits; what one batch left alone is the original of that layer for the next."""
    before = llama_bench.weights()
    subject = llama_bench.editor(replace(QUICK, layers=(0,)))
    subject.edit(REQUESTS[:1], answers=False)
    subject.settings = replace(QUICK, layers=(0, 1))
    subject.edit([REQUESTS[1].model_copy(update={"case_id": None})], answers=False)
    subject.settings = replace(QUICK, layers=(1,))
    state = subject.state
    assert [state.prior_keys(layer, 64).shape[1] for layer in (0, 1)] == [2, 1]
    assert state.prior_names(0) == [REQUESTS[0].name(), "request 1 ('Anna Berg was born in')"]
    assert state.prior_names(1) == ["request 1 ('Anna Berg was born in')"]
    now = llama_bench.weights()
    llama_bench.load(before)
    assert state.in_force(subject._weights.maps) == 0  # also at the layer that the first batch did not know
    llama_bench.load(now)
    layer_0 = llama_bench.weights()["model.layers.0.mlp.down_proj.weight"]
    report = subject.edit(LATER, answers=False)
    assert [layer.layer for layer in report.layers] == [1]
    assert torch.equal(llama_bench.weights()["model.layers.0.mlp.down_proj.weight"], layer_0)
    for name in ("2", "1", "3"):
        subject.revert(name)
    assert llama_bench.holds(before)
    with pytest.raises(SettingError, match="the model has 3 blocks"):
        subject.settings = replace(QUICK, layers=(3,))
    assert subject.settings.layers == (1,)


def test_an_edit_that_changes_no_bit_is_in_force_all_the_same(gpt2_bench: Bench) -> None:
    """Its weights are those from before it; that is not someone taking it back."""
    gpt2_bench.model.half()
    before = gpt2_bench.weights()
    subject = gpt2_bench.editor(replace(QUICK, ridge=1e30, ridge_unit="absolute", search=None))
    for requests in (REQUESTS, LATER):
        subject.edit(requests, answers=False)
    assert gpt2_bench.holds(before)
    assert [batch.name for batch in subject.state.batches] == ["1", "2"]
    subject.revert("1")
    assert [batch.name for batch in subject.state.batches] == ["2"]
    subject.edit(REQUESTS, answers=False)
    assert [batch.name for batch in subject.state.batches] == ["2", "3"]
    subject.revert("2")
    subject.edit(LATER, answers=False)  # "2" would be the number, and "3" is taken
    assert [batch.name for batch in subject.state.batches] == ["3", "2"]
