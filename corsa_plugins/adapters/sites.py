"""What an edit state changes: the FFN down maps that it knows by the number of their block, and experts among them."""

from __future__ import annotations

import re

from corsa_plugins.alphaedit import EditState
from corsa_plugins.alphaedit.weights import Site
from corsa_plugins.model.architecture import Architecture, ArchitectureError

__all__ = ["changed_names", "down_maps", "experts_at", "fused_experts"]


def down_maps(architecture: Architecture) -> dict[str, int]:
    """The number of the block by the name of what an edit changes of it: its FFN's down map, or the parameter of its
    routed experts. Blocks without either are left out."""
    layers = {}
    for layer in range(len(architecture.blocks)):
        try:
            down = architecture.edited(layer)
        except ArchitectureError:
            continue
        layers[down.name if down.experts == 1 else f"{down.name}.{down.stored}"] = layer
    return layers


def changed_names(state: EditState) -> dict[Site, str]:
    """What a state changes, by name: a module, or, of routed experts, their parameter."""
    return {site: _routed(state, site) or name for site, name in state.modules.items()}


def experts_at(state: EditState, site: Site) -> int:
    """How many routed experts lie side by side in what a state changes there; 1: it is one linear map."""
    parameter = _routed(state, site)
    return 1 if parameter is None else state.fingerprint.shapes[parameter][0]


def fused_experts(state: EditState) -> list[str]:
    """Experts' fused weights in a state's model: parameters of three axes in the same list of blocks, one of the
    last two being the hidden width. Convolutions (depthwise ones have an axis of 1) and what a model sees or hears with
    are none."""
    lists = {re.split(r"\.\d+\.", name)[0] for name in state.modules.values()}
    widths = {original.shape[0] for original in state.originals.values()}
    return [
        name
        for name, shape in state.fingerprint.shapes.items()
        if re.split(r"\.\d+\.", name)[0] in lists and len(shape) == 3 and 1 not in shape and widths & set(shape[1:])
    ]


def _routed(state: EditState, site: Site) -> str | None:
    """The parameter of the routed experts that a state changes: of those of its module that have the shape, the last,
    as in a model; ``None`` where it changes a linear map."""
    module, (d_out, d_in) = state.modules[site], state.originals[site].shape[:2]
    fitting = [
        name
        for name, shape in state.fingerprint.shapes.items()
        if name.rpartition(".")[0] == module and len(shape) == 3
        if shape[0] * shape[1] * shape[2] == d_out * d_in and d_out in shape[1:]
    ]
    return fitting[-1] if fitting else None
