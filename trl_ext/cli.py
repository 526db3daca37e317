"""What the extension adds to the console script: `corsa train` and `corsa demo`."""

from __future__ import annotations

from collections.abc import Sequence

from corsa_plugins.cli import passthrough
from corsa_plugins.errors import require

__all__ = ["demo", "train"]


@passthrough
def train(argv: Sequence[str]) -> int:
    """Train a CoRSA adapter from a file of edit requests, through TRL."""
    for module in ("trl", "peft", "datasets"):
        require(module, "trl", what="corsa train")
    from trl_ext.train import main

    main(argv, prog="corsa train")
    return 0


def demo() -> None:
    """x"""
