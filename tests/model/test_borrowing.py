"""A borrowed model comes back exactly as it was, whatever happened meanwhile and wherever it was interrupted."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from corsa_plugins.model import borrowing
from corsa_plugins.model.borrowing import (
    active_adapter,
    adapters_off,
    attribute,
    eval_mode,
    frozen,
    gradient_flags_kept,
    hooked,
    modes_kept,
    random_state_kept,
    replaced,
)
from tests.conftest import llama


class Halves(nn.Module):
    """Two maps and a norm: enough to be in mixed modes, frozen in part, hooked and replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(3, 3), nn.Linear(3, 3), nn.LayerNorm(3)
        self.note = "own"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.second(self.first(x)))


def snapshot(model: nn.Module) -> Any:
    """All that borrowing could leave behind."""
    return (
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [list(module._forward_hooks.values()) for module in model.modules()],
        [list(module._forward_pre_hooks.values()) for module in model.modules()],
        [vars(module).get("forward") for module in model.modules()],
        vars(model).get("note"),
        [parameter.detach().clone().tolist() for parameter in model.parameters()],
    )


def meddle(model: Halves) -> None:
    """What a careless user of a borrowed model does to it."""
    model.train()
    model.first.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(not parameter.requires_grad)


CONTEXTS: dict[str, Callable[[Halves], AbstractContextManager[None]]] = {
    "modes": modes_kept,
    "flags": gradient_flags_kept,
    "eval": eval_mode,
    "frozen": frozen,
    "frozen but one": lambda model: frozen(model, but=[model.second.weight]),
    "hook": lambda model: hooked(model.first, lambda *args: None),
    "pre-hook": lambda model: hooked(model.first, lambda *args: None, before=True, with_kwargs=True),
    "replaced": lambda model: replaced([model.first, model.second], lambda x: x),
    "attribute": lambda model: attribute(model, "note", "borrowed"),
}


def mixed(seed: int) -> Halves:
    """A model of which every module is in a mode, and every parameter has a flag, of its own."""
    model, dice = Halves(), random.Random(seed)
    for module in model.modules():
        module.training = dice.random() < 0.5
    for parameter in model.parameters():
        parameter.requires_grad_(dice.random() < 0.5)
    if dice.random() < 0.5:  # as a device map does
        model.first.forward = lambda x: 2 * x
    if dice.random() < 0.5:
        model.register_forward_hook(lambda *args: None)
    return model


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    nested=st.lists(st.sampled_from(sorted(CONTEXTS)), min_size=1, max_size=5),
    error=st.sampled_from([None, RuntimeError, KeyboardInterrupt, SystemExit]),
)
def test_however_contexts_are_nested_and_left_the_model_is_as_it_was(seed, nested, error):
    model = mixed(seed)
    before = snapshot(model)
    with contextlib.suppress(*([error] if error else [])), contextlib.ExitStack() as stack:
        for name in nested:
            stack.enter_context(CONTEXTS[name](model))
        if error is not None:
            raise error
    assert snapshot(model) == before


@pytest.mark.parametrize("name", ["eval", "frozen", "frozen but one"])
@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_what_the_block_itself_changes_is_put_back_too(name, error):
    model = mixed(7)
    before = snapshot(model)
    keep = contextlib.nullcontext() if name.startswith("frozen") else gradient_flags_kept(model)
    with contextlib.suppress(KeyboardInterrupt), keep, CONTEXTS[name](model):
        meddle(model)
        if error is not None:
            raise error
    assert snapshot(model) == before


def interrupted_at(number: int, inside: Callable[[], None]) -> bool:
    """Run ``inside``, with Ctrl-C at the given line that borrowing.py runs until the block begins; whether it came."""
    lines = 0

    def trace(frame: Any, event: str, arg: Any) -> Any:
        nonlocal lines
        if frame.f_code.co_filename != borrowing.__file__:
            return None
        if event == "line":
            lines += 1
            if lines == number:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    outer = sys.gettrace()
    try:
        sys.settrace(trace)
        inside()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(outer)
    return False


@pytest.mark.parametrize("name", CONTEXTS)
def test_ctrl_c_while_the_model_is_being_borrowed_leaves_it_as_it_was(name):
    model = mixed(3)
    before = snapshot(model)

    def borrow() -> None:
        with CONTEXTS[name](model):
            sys.settrace(None)  # from here on, Ctrl-C comes in the block: see above

    number = 1
    while interrupted_at(number, borrow):
        assert snapshot(model) == before, f"after Ctrl-C at line {number}"
        number += 1
    assert number > 2, "it was never interrupted: this test tests nothing"


def test_eval_mode_runs_without_dropout_and_gradients():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.9))
    x = torch.ones(2, 4)
    with eval_mode(model):
        assert torch.equal(model(x), model[0](x))
        assert not model(x).requires_grad
    assert model(x).requires_grad


def test_frozen_parameters_ask_for_no_gradients_where_they_are_turned_on():
    model = mixed(5)
    with frozen(model), torch.enable_grad():
        assert not model(torch.ones(1, 3)).requires_grad
    with frozen(model, but=[model.second.weight]), torch.enable_grad():
        assert [name for name, p in model.named_parameters() if p.requires_grad] == ["second.weight"]


def test_frozen_can_be_differentiated_within_a_callers_inference_mode():
    model = Halves()
    with torch.inference_mode(), frozen(model, but=[model.first.weight]):
        assert not torch.is_grad_enabled()
        with torch.enable_grad():
            loss = model(torch.rand(2, 3)).square().sum()
            (gradient,) = torch.autograd.grad(loss, [model.first.weight])
    assert gradient.isfinite().all()


def test_hooks_see_and_change_what_a_module_reads_and_writes():
    model, seen = Halves(), []
    x = torch.ones(1, 3)
    with hooked(model.first, lambda module, args: seen.append(args[0]), before=True):
        with hooked(model.first, lambda module, args, output: 0 * output):
            assert torch.equal(model(x), model.norm(model.second(torch.zeros(1, 3))))
        model(x)
    model(x)
    assert len(seen) == 2
    assert all(torch.equal(read, x) for read in seen)


def test_replaced_blocks_do_not_run():
    model = Halves()
    with replaced([model.first, model.second], lambda x: x):
        assert torch.equal(model(torch.ones(1, 3)), model.norm(torch.ones(1, 3)))


def test_an_attribute_of_the_class_is_the_classs_again():
    model = Halves()
    with attribute(model, "dump_patches", True):
        assert model.dump_patches
    assert "dump_patches" not in vars(model)
    assert not model.dump_patches


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_random_generators_go_on_as_if_nothing_had_been_drawn(error):
    def draw() -> list[float]:
        return [random.random(), float(numpy.random.rand()), float(torch.rand(()))]  # noqa: NPY002

    states = random.getstate(), numpy.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    expected = draw()
    random.setstate(states[0])
    numpy.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])
    with contextlib.suppress(KeyboardInterrupt), random_state_kept():
        draw()
        random.seed(1)
        numpy.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        if error is not None:
            raise error
    assert draw() == expected


@pytest.fixture
def adapted() -> Any:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(llama(20), config, adapter_name="people")
    model.add_adapter("other", config)
    for name, parameter in model.named_parameters():  # a state that PEFT itself would not leave
        parameter.requires_grad_("lora_B" in name)
    return model.eval()


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
@pytest.mark.parametrize(
    "context", [lambda model: active_adapter(model, "other"), adapters_off], ids=["another adapter", "no adapter"]
)
def test_adapters_are_switched_and_switched_back(adapted, context, error):
    ids = torch.tensor([[3, 4, 5]])
    flags = [parameter.requires_grad for parameter in adapted.parameters()]
    with torch.no_grad():
        before = adapted(ids).logits
        with contextlib.suppress(KeyboardInterrupt), context(adapted):
            assert not torch.equal(adapted(ids).logits, before)
            if error is not None:
                raise error
        assert torch.equal(adapted(ids).logits, before)
    assert [parameter.requires_grad for parameter in adapted.parameters()] == flags
    assert adapted.active_adapters == ["people"]
    assert adapted.active_adapter == "people"


def test_a_model_without_adapters_has_none_to_switch_off():
    model, ids = llama(20), torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        before = model(ids).logits
        with adapters_off(model):
            assert torch.equal(model(ids).logits, before)


def test_an_adapter_that_is_not_there_changes_nothing(adapted):
    flags = [parameter.requires_grad for parameter in adapted.parameters()]
    with pytest.raises(ValueError, match="missing"), active_adapter(adapted, "missing"):
        pass
    assert adapted.active_adapters == ["people"]
    assert [parameter.requires_grad for parameter in adapted.parameters()] == flags
