"""Whether a device computes in bfloat16, or only pretends to."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["computes_in_bfloat16"]

_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16")
_BY_NAME = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
"""Who says so in a torch that does not list what a processor can do."""


def computes_in_bfloat16(device: torch.device | str | None = None) -> bool:
    """Whether matrix products in bfloat16 are no slower than in float32.

    A processor without instructions for it takes many times as long, eighty times where there is no AVX-512.

    Args:
        device: By default a GPU if there is one.
    """
    kind = torch.device(device).type if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if kind != "cpu":
        return True
    listed: Any = getattr(torch.cpu, "get_capabilities", None)
    if listed is None:
        return any(getattr(torch.cpu, name, bool)() for name in _BY_NAME)
    capabilities = listed()
    return any(capabilities.get(name) for name in _INSTRUCTIONS)
