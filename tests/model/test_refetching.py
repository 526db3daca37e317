"""Weights that are fetched or unpacked when they are used are not kept for the gradient, which is the same one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from corsa_plugins.model.borrowing import frozen
from corsa_plugins.model.loading import load_model
from corsa_plugins.model.placement import fetches
from corsa_plugins.model.quantised import unpacks
from corsa_plugins.model.refetching import refetched
from corsa_plugins.model.stored import save_model
from tests.support.placed import in_parts

pytest.importorskip("accelerate")

ROWS = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))


def gradient(model: Any) -> tuple[Tensor, int]:
    """By the inputs' embeddings, and the bytes that are kept until it is taken."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    rows = ROWS.clone().requires_grad_()
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(inputs_embeds=rows).logits.square().sum()
    (found,) = torch.autograd.grad(loss, rows)
    return found, sum(kept.values())


@pytest.fixture(params=["disk", "int8", "int4"])
def fetched(request: pytest.FixtureRequest, taught_llama: Any, tiny_tokenizer: Any, tmp_path: Path) -> Any:
    if request.param == "disk":
        return in_parts(taught_llama, tiny_tokenizer, tmp_path / "model")
    pytest.importorskip("torchao")
    save_model(taught_llama, tiny_tokenizer, tmp_path / "model")
    return load_model(tmp_path / "model", device="cpu", dtype=request.param)[0]


def test_gradients_are_the_same_and_no_weight_is_kept(fetched: Any, taught_llama: Any) -> None:
    names = {name for name, module in fetched.named_modules() if fetches(module) or unpacks(module)}
    sizes = {name: taught_llama.get_submodule(name).weight.nbytes for name in names if name.endswith("_proj")}
    assert len(sizes) >= 7
    forwards = {name: fetched.get_submodule(name).forward for name in names}
    with frozen(fetched):
        plain, kept = gradient(fetched)
        with refetched(fetched):
            again, left = gradient(fetched)
        assert torch.equal(plain, again)
        assert kept - left > 0.8 * sum(sizes.values())
    assert all(fetched.get_submodule(name).forward == forward for name, forward in forwards.items())
    if next(fetched.parameters()).is_meta:
        assert all(fetched.get_submodule(name).weight.is_meta for name in sizes)


def test_a_gradient_may_be_taken_after_it(fetched: Any) -> None:
    rows = ROWS.clone().requires_grad_()
    with frozen(fetched):
        plain, _ = gradient(fetched)
        with refetched(fetched), torch.enable_grad():
            loss = fetched(inputs_embeds=rows).logits.square().sum()
        assert torch.equal(torch.autograd.grad(loss, rows)[0], plain)


def test_other_models_are_run_as_they_are(taught_llama: Any) -> None:
    with refetched(taught_llama):
        assert all("forward" not in vars(module) for module in taught_llama.modules())
