"""Which parameters train, and which blocks lie below all of them."""

from __future__ import annotations

import contextlib
import difflib
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn

from corsa_plugins.errors import SettingError
from corsa_plugins.model.architecture import ArchitectureError, find_architecture
from corsa_plugins.model.placement import bring_in
from corsa_plugins.model.quantised import refuse_quantised
from corsa_plugins.rsft.settings import RSFTSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["frozen_below", "trainable_parameters"]

logger = logging.getLogger(__name__)


def trainable_parameters(model: PreTrainedModel, settings: RSFTSettings) -> dict[str, nn.Parameter]:
    """The parameters R-SFT would change, by name: those of one FFN, of a mixture without one its routed experts, or of
    the modules named in the settings; those that are offloaded are in memory from now on.

    Raises:
        SettingError: No such block or module, or its weights cannot be trained (quantised, or not in memory).
        ArchitectureError: No ``modules`` are named and the block's FFN cannot be told from its other parts.
    """
    if settings.modules is None:
        architecture = find_architecture(model)
        names: Iterable[str] = architecture.trained(settings.layer_of(len(architecture.blocks)))
    else:
        names = settings.modules
    modules = dict(model.named_modules())
    trainable: dict[int, tuple[str, nn.Parameter]] = {}  # by identity, as modules may overlap or share a parameter
    for name in names:
        if name not in modules:
            close = difflib.get_close_matches(name, modules, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else "see model.named_modules()"
            raise SettingError(f"modules: {type(model).__name__} has no module {name!r}; {hint}")
        refuse_quantised(modules[name], f"{name} cannot be trained")
        bring_in(model, name)
        for own_name, parameter in modules[name].named_parameters():
            trainable.setdefault(id(parameter), (f"{name}.{own_name}".lstrip("."), parameter))
    if not trainable:
        raise SettingError(f"modules: {', '.join(names)} has no parameters to train")
    for full_name, parameter in trainable.values():
        if not parameter.dtype.is_floating_point or parameter.dtype.itemsize < 2:
            raise SettingError(
                f"{full_name} is stored as {parameter.dtype}, which cannot be trained: load the model unquantised, "
                "in bfloat16 or float32"
            )
        if parameter.is_meta:
            raise SettingError(f"{full_name} is on meta, without values: load the model onto a device")
    return dict(trainable.values())


def frozen_below(model: PreTrainedModel, parameters: Iterable[nn.Parameter]) -> list[nn.Module]:
    """The blocks whose output cannot change while ``parameters`` do: those under the lowest one that has any.

    Empty where something before the blocks trains too (an embedding, or a head that shares its weight), or where the
    blocks cannot be told.
    """
    trained = {id(parameter) for parameter in parameters}
    try:
        parts = find_architecture(model)
    except ArchitectureError as error:
        logger.info("every pass will run the whole model: %s", error)
        return []
    blocks = [block.module for block in parts.blocks]
    above = [*blocks, parts.head.module]
    with contextlib.suppress(ArchitectureError):  # a norm that is not found counts as lying below, which is safe
        above.append(parts.norm.module)
    outside = _ids([model]) - _ids(above) | _ids([parts.embedding.module])
    if trained & outside:
        return []
    first = next((i for i, block in enumerate(blocks) if trained & _ids([block])), len(blocks))
    return blocks[:first]


def _ids(modules: Iterable[nn.Module]) -> set[int]:
    return {id(parameter) for module in modules for parameter in module.parameters()}
