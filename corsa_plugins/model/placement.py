"""A model in parts: where its layers lie, and weights that are fetched only when they are used (accelerate).

Of a model with a device map some layers may be offloaded: between two uses their parameters are on ``meta``, without
values, and a hook of accelerate's on each module fetches them, from main memory or from files. Here is the one place
that knows these hooks: what a weight holds, wherever it is (:func:`named_values`); and keeping the few in memory that
are to be changed (:func:`bring_in`).
"""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from corsa_plugins.errors import SettingError, require

if TYPE_CHECKING:
    from typing import TypeAlias

__all__ = [
    "AUTOMATIC",
    "Placement",
    "Where",
    "bring_in",
    "execution_device",
    "fetches",
    "files_read",
    "give_memory",
    "is_offloaded",
    "named_values",
    "state_to_save",
    "tensor_of",
    "without_device_map",
]

AUTOMATIC = ("auto", "balanced", "balanced_low_0", "sequential")
"""Device maps that transformers makes of what there is."""


@dataclass(frozen=True)
class Placement:
    """Where the layers of a model lie, as transformers and accelerate take it.

    Attributes:
        device_map: ``"auto"``, ``"balanced"``, ``"balanced_low_0"`` or ``"sequential"``; or, by the name of the module,
            the number of a GPU, ``"cpu"`` or ``"disk"``.
        max_memory: By the number of a GPU or ``"cpu"``, how much of it to use: bytes, or as in ``"20GiB"``. What has
            no place is offloaded to disk.
        offload_folder: Where weights are written that cannot be read from the model's own files; by default a folder
            that lasts as long as the model.

    Raises:
        SettingError: One of them is of no such form.
    """

    device_map: str | Mapping[str, int | str] = "auto"
    max_memory: Mapping[int | str, int | str] | None = None
    offload_folder: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.device_map, str) and self.device_map not in AUTOMATIC:
            raise SettingError(
                f"device_map is {self.device_map!r}: choose one of {', '.join(AUTOMATIC)}, or give a map by module"
            )
        if not self.device_map:
            raise SettingError("device_map is empty: name at least one module, or '' for the whole model")
        if self.max_memory is not None and not isinstance(self.device_map, str):
            raise SettingError("max_memory is for device maps that are made, such as auto; this one says all by itself")

    def check(self, model: nn.Module) -> None:
        """See that every module that the map names is there: transformers leaves what it does not know to the CPU.

        Raises:
            SettingError: One is not.
        """
        if isinstance(self.device_map, str):
            return
        names = {name for name, _ in (*model.named_modules(), *model.named_parameters(), *model.named_buffers())}
        for name in self.device_map:
            if name not in names:
                close = difflib.get_close_matches(name, names, n=3)
                hint = f"did you mean {' or '.join(close)}?" if close else "see model.named_modules()"
                raise SettingError(f"device_map: {type(model).__name__} has no module {name!r}; {hint}")

    def as_settings(self, offload_folder: str) -> dict[str, Any]:
        """As ``from_pretrained`` takes it; ``offload_folder`` where none is named.

        Raises:
            MissingExtraError: accelerate is not installed.
        """
        require("accelerate", "trl", what="a device map")
        settings: dict[str, Any] = {
            "device_map": self.device_map if isinstance(self.device_map, str) else dict(self.device_map),
            "offload_folder": os.path.expanduser(os.fspath(self.offload_folder or offload_folder)),
        }
        if self.max_memory is not None:
            settings["max_memory"] = dict(self.max_memory)
        return settings


Where: TypeAlias = str | Placement | None
"""Where a model goes: a device by name, a placement in parts, or ``None`` for a GPU if there is one."""


def _offloading_hook(module: nn.Module) -> Any:
    """The hook that fetches the parameters of a module, or of what it is a part of; ``None`` where they stay."""
    hook = getattr(module, "_hf_hook", None)
    for each in getattr(hook, "hooks", (hook,)):
        if getattr(each, "offload", False) and getattr(each, "weights_map", None) is not None:
            return each
    return None


def fetches(module: nn.Module) -> bool:
    """Whether parameters of this very module are fetched each time it is run, and let go afterwards."""
    return _offloading_hook(module) is not None


def files_read(model: nn.Module) -> set[str]:
    """Files and folders that parameters which are offloaded to disk are fetched from."""
    loaders = {}
    for module in model.modules():
        hook = _offloading_hook(module)
        loader = getattr(getattr(hook, "weights_map", None), "dataset", None)
        loaders[id(loader)] = loader
    files = {str(getattr(loader, "save_folder", None) or "") for loader in loaders.values()}
    for loader in loaders.values():
        files |= {str(info.get("safetensors_file") or "") for info in (getattr(loader, "index", None) or {}).values()}
    return files - {""}


def is_offloaded(model: nn.Module) -> bool:
    """Whether some of its parameters are fetched only when they are used."""
    return any(_offloading_hook(module) is not None for module in model.modules())


def tensor_of(module: nn.Module, name: str) -> Tensor:
    """What a parameter or buffer of this very module holds; one that is offloaded is read, and not to be written to.

    It is on ``meta`` where it is offloaded by something else than accelerate's hook on the module itself.
    """
    tensor: Any = getattr(module, name)
    hook = _offloading_hook(module)
    if hook is None or not tensor.is_meta:
        return tensor
    value: Tensor = hook.weights_map[name]
    return value.to(tensor.dtype)


def named_values(model: nn.Module, *, buffers: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Names and values of the parameters as ``model.named_parameters()`` has them, those that are offloaded as well:
    one at a time is in memory. Offloaded weights that are one, as an embedding and a head may be, come once.

    Args:
        model: Any; a ``PeftModel`` too.
        buffers: Buffers as well, behind them.
    """
    modules = dict(model.named_modules())
    tied = _tied(model)
    for name, tensor in [*model.named_parameters(), *(model.named_buffers() if buffers else ())]:
        if tensor.is_meta and name in tied:
            continue
        owner, _, own = name.rpartition(".")
        yield name, tensor_of(modules[owner], own) if tensor.is_meta else tensor


def _tied(model: nn.Module) -> set[str]:
    """Names of parameters that are another one of the model by another name."""
    adapted: Any = model
    base = adapted.get_base_model() if hasattr(adapted, "get_base_model") else adapted
    prefix = next((f"{name}." for name, module in model.named_modules() if module is base and name), "")
    return {prefix + name for name in getattr(base, "all_tied_weights_keys", None) or {}}


def state_to_save(model: nn.Module) -> dict[str, Tensor]:
    """The state dictionary of a model that is partly offloaded, for ``save_pretrained``: of weights that are one, the
    one that the others are tied to. Where they are in memory, transformers sees that by itself.
    """
    tied = _tied(model)
    return {name: tensor for name, tensor in model.state_dict().items() if not (tensor.is_meta and name in tied)}


def execution_device(module: nn.Module) -> torch.device:
    """Where a module with parameters is run, which is where its inputs go."""
    hook = _offloading_hook(module)
    if hook is not None and hook.execution_device is not None:
        return torch.device(hook.execution_device)
    return next(module.parameters()).device


@torch.no_grad()
def bring_in(model: nn.Module, name: str) -> None:
    """Have a module's parameters in memory from now on, where it is run, as those that are to be changed must be.

    What is there later is what counts: the hooks no longer fetch the module's parameters, and saving the model saves
    what it has.

    Args:
        model: With a device map, or without: then nothing is to be done.
        name: Of the module; those in it are brought in too.

    Raises:
        SettingError: A parameter is also another module's that stays offloaded, which would not change with it.
    """
    if not is_offloaded(model):
        return
    from accelerate.utils import named_module_tensors, set_module_tensor_to_device

    module = model.get_submodule(name)
    _refuse_tied(model, name)
    for part in module.modules():
        hook = _offloading_hook(part)
        if hook is None:
            continue
        own = named_module_tensors(
            part, include_buffers=hook.offload_buffers, recurse=hook.place_submodules, remove_non_persistent=True
        )
        for tensor_name, tensor in list(own):
            if tensor.is_meta:
                # a copy: what is fetched may be a file's page or what accelerate keeps
                value = hook.weights_map[tensor_name].to(hook.execution_device, tensor.dtype, copy=True)
                set_module_tensor_to_device(part, tensor_name, hook.execution_device, value=value)
        hook.offload = False


@contextlib.contextmanager
def without_device_map(model: nn.Module) -> Iterator[None]:
    """Within the block the model does not say that it has a device map: PEFT would dispatch it again by one of its own,
    with everything in memory."""
    own = vars(model).pop("hf_device_map", None)
    try:
        yield
    finally:
        if own is not None:
            model.hf_device_map = own


def give_memory(adapted: nn.Module) -> bool:
    """Memory for the weights of adapters on offloaded layers, where those are run; PEFT put them on ``meta`` too.

    Args:
        adapted: A ``PeftModel``.

    Returns:
        Whether any got it; they are yet to be loaded.
    """
    given = False
    for layer in adapted.modules():
        if not hasattr(layer, "get_base_layer"):
            continue
        tuner: Any = layer
        base = tuner.get_base_layer()
        for part in set(layer.modules()) - set(base.modules()):
            for name, parameter in list(part.named_parameters(recurse=False)):
                if parameter.is_meta:
                    room = torch.empty_like(parameter, device=execution_device(base))
                    setattr(part, name, nn.Parameter(room, parameter.requires_grad))
                    given = True
    return given


def _refuse_tied(model: nn.Module, name: str) -> None:
    within = f"{name}." if name else ""
    for first, second in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        if first.startswith(within) == second.startswith(within):
            continue
        with contextlib.suppress(AttributeError):
            if model.get_parameter(first).is_meta or model.get_parameter(second).is_meta:
                raise SettingError(
                    f"{first} and {second} are one weight, which is offloaded: to change it, put both on one device "
                    "(in the device map, not on disk)"
                )
