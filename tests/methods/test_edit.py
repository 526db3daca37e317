"""One update by a method, saved: what is on disk is the edited model, and the model given is as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.bench.protocols import Method
from corsa_plugins.methods.edit import save_update
from tests.fixtures.protocols import CORE, FailsOnce
from tests.support.small_plans import BORN, FRANCE


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", CORE)
def test_the_saved_model_is_the_one_that_the_session_made(
    name: str,
    make: Callable[[str], Method],
    taught_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    before = weights(taught_llama)
    saved = save_update(make(name), taught_llama, tiny_tokenizer, [FRANCE, BORN], tmp_path / "edited")
    assert (saved.model, saved.adapter) == (tmp_path / "edited" / "model", None)
    assert all(torch.equal(before[n], tensor) for n, tensor in weights(taught_llama).items())
    (tmp_path / "alone").mkdir()
    session = make(name).start(taught_llama, tiny_tokenizer, seed=0)
    session.update([FRANCE, BORN], tmp_path / "alone")
    expected = weights(taught_llama)
    assert any(not torch.equal(before[n], tensor) for n, tensor in expected.items())
    loaded: Any = AutoModelForCausalLM.from_pretrained(saved.model)
    assert all(torch.equal(expected[n], tensor) for n, tensor in weights(loaded).items())
    # what the method itself keeps of an update is there too
    assert {path.name for path in (tmp_path / "alone").iterdir()} < {p.name for p in (tmp_path / "edited").iterdir()}


def test_an_update_that_breaks_off_leaves_nothing(
    make: Callable[[str], Method],
    taught_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    before = weights(taught_llama)
    with pytest.raises(RuntimeError, match="out of memory"):
        save_update(FailsOnce(make("rsft"), 1), taught_llama, tiny_tokenizer, [FRANCE], tmp_path / "edited")
    assert not list(tmp_path.iterdir())
    assert all(torch.equal(before[n], tensor) for n, tensor in weights(taught_llama).items())
