"""An edit state is of one model, in one precision."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest

from corsa_plugins.alphaedit import AlphaEditor, EditState, StateError
from tests.fixtures.alphaedit import REQUESTS, SETTINGS, Bench


def test_a_model_that_has_the_edits_already_is_recognised(llama_bench: Bench, tmp_path: Path) -> None:
    here = llama_bench.editor()
    here.edit(REQUESTS)
    here.state.save(tmp_path / "edits")
    before = llama_bench.weights()
    there = AlphaEditor(
        llama_bench.model, llama_bench.tokenizer, None, SETTINGS, state=EditState.load(tmp_path / "edits")
    )
    there.apply()
    assert llama_bench.holds(before)


def test_another_precision_is_refused(llama_bench: Bench) -> None:
    here = llama_bench.editor()
    here.edit(REQUESTS)
    state = here.state
    llama_bench.model.bfloat16()
    with pytest.raises(StateError, match=r"made in torch.float32, and .* is torch.bfloat16"):
        AlphaEditor(llama_bench.model, llama_bench.tokenizer, None, SETTINGS, state=state)


def test_a_state_of_a_larger_model_is_of_another_model(llama_bench: Bench) -> None:
    """Not a wrong setting of layers, as it looks where the layers are looked up first."""
    here = llama_bench.editor(layers=(1,))
    here.edit(REQUESTS[:1], answers=False)
    config = copy.deepcopy(llama_bench.model.config)
    config.num_hidden_layers = 1
    with pytest.raises(StateError, match="made on another model"):
        AlphaEditor(
            type(llama_bench.model)(config), llama_bench.tokenizer, None, replace(SETTINGS, layers=(0,)),
            state=here.state,
        )  # fmt: skip
