"""Editing small models of many families, found from the model itself: only what should change does, and goes back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from corsa_plugins.alphaedit import AlphaEditor, EditState
from corsa_plugins.alphaedit.lookup.contexts import generate_contexts
from corsa_plugins.alphaedit.lookup.keys import request_keys, request_outputs
from corsa_plugins.alphaedit.statistics.collect import collect_statistics
from corsa_plugins.alphaedit.values.search import find_values
from corsa_plugins.model.architecture import Architecture, ArchitectureError, find_architecture
from corsa_plugins.model.running import adds_output_as_it_is
from tests.conftest import TEXTS
from tests.fixtures.alphaedit import SETTINGS
from tests.model.test_architecture import build
from tests.support.families import NAMES, REQUESTS, family
from tests.support.mixtures import MIXTURES

# Of three blocks: what the last one puts out at a subject is read by no later token.
QUICK = replace(
    SETTINGS, layers=(0, 1), ridge=0.01, n_contexts=1, values=replace(SETTINGS.values, steps=8), batch_size=8
)
# Their FFN's output passes a norm before it is added.
NORM_BEHIND = ("gemma2", "gemma3", "olmo2")
# It is multiplied by a number, or is one of several streams.
NOT_AS_IT_IS = (*NORM_BEHIND, "gemma3n", "gemma4", "granite", "falcon_h1")
# Of the later families those that are built in another way.
OTHERS = ("opt", "gemma3n", "gemma4", "granite", "falcon_h1")

Locate = Callable[[Any], Architecture]


def _weights(model: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    return [name for name, value in after.items() if not torch.equal(value, before[name])]


def _editor(model: Any, tokenizer: PreTrainedTokenizerFast, locate: Locate = find_architecture) -> AlphaEditor:
    parts = locate(model)
    statistics = collect_statistics(
        model, tokenizer, TEXTS[:6], QUICK.layers, n_tokens=10**6, length=32, sample_size=16, architecture=parts
    )
    return AlphaEditor(model, tokenizer, statistics, QUICK, architecture=parts)


def _edit_and_take_back(
    editor: AlphaEditor, downs: list[str], folder: Path, locate: Locate = find_architecture
) -> None:
    """Two requests, a state on disk, a third request here and on a copy that goes on from it, and all out again."""
    model: Any = editor.model
    other, before = copy.deepcopy(model), _weights(model)
    report = editor.edit(REQUESTS[:2])
    edited = _weights(model)
    assert _changed(before, edited) == downs
    assert all(isinstance(request.answer_after, str) for request in report.requests)
    _assert_the_update_is_in_the_model(editor, locate)

    loaded = EditState.load(editor.state.save(folder))
    again = AlphaEditor(
        other, editor.tokenizer, editor.statistics, editor.settings, state=loaded, architecture=locate(other)
    )
    again.apply()
    assert not _changed(edited, _weights(other))
    assert editor.edit(REQUESTS[2:], answers=False) == again.edit(REQUESTS[2:], answers=False)
    assert not _changed(_weights(model), _weights(other))
    assert _changed(edited, _weights(model)) == downs
    for subject, order in ((editor, ("1", "2")), (again, ("2", "1"))):
        for name in order:
            subject.revert(name)
        assert not _changed(before, _weights(subject.model))


def _assert_the_update_is_in_the_model(editor: AlphaEditor, locate: Locate) -> None:
    """The model leaves of the residuals at the last layer what its update says.

    The update leaves less than there was: of all requests together, as their keys are averaged over the contexts. Not
    of every one of them, nor less than the inconsistencies before the first layer was edited: a layer that has targets
    of its own may have them further off.
    """
    model: Any = editor.model
    (batch,), layer = editor.state.batches, QUICK.layers[-1]
    update, parts = batch.layers[layer], locate(model)
    left, right = update.left.double(), update.right.double()
    assert (left - left @ (right.T @ update.keys.double())).norm() < left.norm()
    (bare,) = request_keys(model, editor.tokenizer, batch.requests, [layer], ["{}"], architecture=parts).values()
    smoothed = torch.tensor([request.smoothing[-1] for request in batch.report.requests])
    expected = (left / (1 - smoothed) - left @ (right.T @ bare.double())).norm(dim=0)
    measured = torch.tensor([request.residual for request in batch.report.requests]).double()
    torch.testing.assert_close(measured, expected, rtol=max(1e-4, 16 * torch.finfo(model.dtype).eps), atol=0)


@pytest.mark.parametrize("name", [*NAMES, *OTHERS])
def test_edit_save_go_on_and_take_back(name: str, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = family(name, len(tiny_tokenizer))
    parts = find_architecture(model)
    assert parts.ffn(0).down.transposed == (name == "gpt2")
    downs = [f"{parts.ffn(layer).down.name}.weight" for layer in QUICK.layers]
    _edit_and_take_back(_editor(model, tiny_tokenizer), downs, tmp_path / "edits")
    assert adds_output_as_it_is(parts, 0) == (name not in NOT_AS_IT_IS)


@pytest.mark.parametrize("name", NORM_BEHIND)
def test_behind_a_norm_every_layer_has_a_target_of_its_own(name: str, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """The residual is that of what the layer's own down map puts out, a half of it at the first of two layers."""
    model = family(name, len(tiny_tokenizer))
    editor = _editor(model, tiny_tokenizer)
    editor.settings = replace(QUICK, smoothing=None)
    contexts = generate_contexts(model, tiny_tokenizer, n=QUICK.n_contexts, length=QUICK.context_length)
    before = copy.deepcopy(model)
    editor.edit(REQUESTS[:2], answers=False)
    updates = editor.state.batches[0].layers
    for share, layer in zip((0.5, 1.0), QUICK.layers, strict=True):
        parts = find_architecture(before)
        site = parts.ffn(layer).down.module
        found = find_values(before, tiny_tokenizer, REQUESTS[:2], layer, contexts, QUICK.values, site=site)
        now = request_outputs(before, tiny_tokenizer, REQUESTS[:2], layer, site=site)
        torch.testing.assert_close(updates[layer].left, share * (found.vectors - now), rtol=1e-3, atol=1e-4)
        with torch.no_grad():  # the next layer sees what this one wrote
            parts.ffn(layer).down.weight.copy_(find_architecture(model).ffn(layer).down.weight)


@pytest.mark.parametrize("name", ["gpt2", "llama3"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_in_every_precision(
    name: str, dtype: torch.dtype, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = family(name, len(tiny_tokenizer)).to(dtype)
    parts = find_architecture(model)
    downs = [f"{parts.ffn(layer).down.name}.weight" for layer in QUICK.layers]
    _edit_and_take_back(_editor(model, tiny_tokenizer), downs, tmp_path / "edits")
    assert all(parameter.dtype == dtype for parameter in model.parameters())


def test_an_architecture_by_hand(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Two FFNs in a block, of which no rule says which it is."""
    model: Any = family("llama3", len(tiny_tokenizer))
    for block in model.model.layers:
        block.add_module("other", copy.deepcopy(block.mlp))
    with pytest.raises(ArchitectureError, match=r"model\.layers\.0 .*mlp or model\.layers\.0\.other.*ffn= and down="):
        AlphaEditor(model, tiny_tokenizer, None, QUICK)

    def locate(model: Any) -> Architecture:
        block = "model.layers.{}"
        return find_architecture(model, blocks=block, ffn=f"{block}.mlp", down=f"{block}.mlp.down_proj")

    downs = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in QUICK.layers]
    _edit_and_take_back(_editor(model, tiny_tokenizer, locate), downs, tmp_path / "edits", locate)


@pytest.mark.parametrize("name", ["deepseek_v3", "qwen3_5_moe", "llama4", "granitemoeshared", "gemma4_moe"])
def test_the_expert_that_every_token_takes_is_an_ffn_like_any_other(
    name: str, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Where a gate weighs it, its values are its own, as behind a norm."""
    model = build(MIXTURES[name][0](vocab_size=len(tiny_tokenizer), initializer_range=0.2))
    parts = find_architecture(model)
    shared = [parts.mixture(layer).shared.name if parts.mixture(layer) else f"{parts.blocks[layer].name}.mlp"  # type: ignore[union-attr]
              for layer in QUICK.layers]  # fmt: skip
    downs = [f"{parts.ffn(layer).down.name}.weight" for layer in QUICK.layers]
    assert all(down.startswith(f"{expert}.") for down, expert in zip(downs, shared, strict=True))
    _edit_and_take_back(_editor(model, tiny_tokenizer), downs, tmp_path / "edits")
    assert adds_output_as_it_is(parts, 1) == (name in ("deepseek_v3", "llama4", "granitemoeshared"))
