"""Which modules are the FFN down maps that an edit state knows by the number of their block."""

from __future__ import annotations

from corsa_plugins.model.architecture import Architecture, ArchitectureError

__all__ = ["down_maps"]


def down_maps(architecture: Architecture) -> dict[str, int]:
    """The number of the block by the name of its FFN's down map; blocks without one, as of experts, are left out."""
    layers = {}
    for layer in range(len(architecture.blocks)):
        try:
            layers[architecture.ffn(layer).down.name] = layer
        except ArchitectureError:
            continue
    return layers
