"""Borrowing a model: what is changed for a while is put back exactly as it was, also after an error or Ctrl-C.

Each of these notes first what there is, changes it inside a ``try`` and puts back what it noted, not what is usual: a
model that trains with one block in evaluation mode trains on with that block in evaluation mode. They nest.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

__all__ = [
    "active_adapter",
    "adapters_off",
    "attribute",
    "eval_mode",
    "frozen",
    "gradient_flags_kept",
    "hooked",
    "modes_kept",
    "random_state_kept",
    "remember_gradient_flags",
    "remember_modes",
    "remember_random_state",
    "replaced",
]


def remember_modes(model: nn.Module) -> Callable[[], None]:
    """Note which modules of ``model`` are in training mode; what is returned puts each back into its own."""
    modes = [(module, module.training) for module in model.modules()]

    def put_back() -> None:
        for module, training in modes:
            module.training = training

    return put_back


def remember_gradient_flags(model: nn.Module) -> Callable[[], None]:
    """Note which parameters of ``model`` require gradients; what is returned has the same ones require them again."""
    # By name: the hooks of a device map put other parameters in the place of those that are offloaded.
    flags = [
        (module, name, parameter.requires_grad)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
    ]

    def put_back() -> None:
        for module, name, required in flags:
            parameter = getattr(module, name)
            if parameter.requires_grad != required:
                parameter.requires_grad_(required)

    return put_back


def remember_random_state(devices: Sequence[torch.device] | None = None) -> Callable[[], None]:
    """Note the states of Python's, NumPy's and PyTorch's generators; what is returned puts them back, however often.

    Args:
        devices: The GPUs whose generators are noted; by default all. To look at a GPU's takes it into use.
    """
    import numpy

    if devices is None:
        devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    of_python, of_numpy, of_torch = random.getstate(), numpy.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    of_gpus = [(device, torch.cuda.get_rng_state(device)) for device in devices]

    def put_back() -> None:
        random.setstate(of_python)
        numpy.random.set_state(of_numpy)  # noqa: NPY002
        torch.set_rng_state(of_torch)
        for device, state in of_gpus:
            torch.cuda.set_rng_state(state, device)

    return put_back


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Whatever the block does to the modes of the model's modules, each is in its own again afterwards."""
    put_back = remember_modes(model)
    try:
        yield
    finally:
        put_back()


@contextmanager
def gradient_flags_kept(model: nn.Module) -> Iterator[None]:
    """Whatever the block does to ``requires_grad``, the same parameters require gradients afterwards."""
    put_back = remember_gradient_flags(model)
    try:
        yield
    finally:
        put_back()


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module gets back the mode it was in."""
    with modes_kept(model), torch.no_grad():
        model.eval()
        yield


@contextmanager
def frozen(model: nn.Module, but: Iterable[nn.Parameter] = ()) -> Iterator[None]:
    """Evaluation mode without gradients; where they are turned on, no parameter asks for any.

    Args:
        but: Parameters of the model that ask for them, whether they did before or not.
    """
    asking = {id(parameter) for parameter in but}
    # A caller's inference mode would leave nothing to differentiate.
    with torch.inference_mode(False), eval_mode(model), gradient_flags_kept(model):
        for parameter in model.parameters():
            if parameter.requires_grad != (id(parameter) in asking):
                parameter.requires_grad_(id(parameter) in asking)
        yield


@contextmanager
def hooked(
    module: nn.Module, hook: Callable[..., Any], *, before: bool = False, with_kwargs: bool = False
) -> Iterator[None]:
    """Within the block ``hook`` is called whenever ``module`` runs.

    Args:
        module: Any.
        hook: Called with module, inputs and output as a forward hook is; what it returns, if it is not ``None``,
            takes the place of the output.
        before: Call it before the module runs, with module and inputs, as a forward pre-hook.
        with_kwargs: Give it the keyword arguments too, behind the inputs.
    """
    handle = None
    try:
        register: Any = module.register_forward_pre_hook if before else module.register_forward_hook
        handle = register(hook, with_kwargs=with_kwargs)
        yield
    finally:
        if handle is not None:
            handle.remove()


@contextmanager
def attribute(target: Any, name: str, value: Any) -> Iterator[None]:
    """Within the block the plain attribute ``name`` is ``value``; one that only the class had is the class's again."""
    own = name in vars(target)
    before = vars(target).get(name)
    try:
        setattr(target, name, value)
        yield
    finally:
        if own:
            setattr(target, name, before)
        elif name in vars(target):
            delattr(target, name)


@contextmanager
def replaced(blocks: Sequence[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """Within the block these modules compute ``forward``; a device map's own forwards are there again afterwards."""
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(attribute(block, "forward", forward))
        yield


@contextmanager
def random_state_kept(devices: Sequence[torch.device] | None = None) -> Iterator[None]:
    """Whatever the block draws or seeds: Python's, NumPy's and PyTorch's generators are afterwards as they were.

    Args:
        devices: As for :func:`remember_random_state`.
    """
    put_back = remember_random_state(devices)
    try:
        yield
    finally:
        put_back()


@contextmanager
def active_adapter(model: Any, name: str) -> Iterator[None]:
    """Adapter ``name`` of a ``PeftModel`` active; which one was, and what requires gradients, is as it was afterwards.

    Raises:
        ValueError: There is no such adapter.
    """
    before = list(model.active_adapters)
    with gradient_flags_kept(model):
        try:
            model.set_adapter(name)
            yield
        finally:
            model.base_model.set_adapter(before)
            model.active_adapter = before[0]


@contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """The adapters switched off, if there are any; what requires gradients is as it was afterwards."""
    switched_off = model.disable_adapter() if hasattr(model, "peft_config") else nullcontext()
    with gradient_flags_kept(model), switched_off:
        yield
