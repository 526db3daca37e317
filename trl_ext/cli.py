"""What the extension adds to the console script: `corsa train`."""

from __future__ import annotations

from collections.abc import Sequence

from corsa_plugins.cli.plugin import passthrough
from corsa_plugins.errors import require

__all__ = ["train"]


@passthrough
def train(argv: Sequence[str]) -> int:
    """Train a CoRSA adapter from a file of edit requests, through TRL."""
    _require_trl("corsa train")
    from trl_ext.train import main

    main(argv, prog="corsa train")
    return 0


def _require_trl(what: str) -> None:
    for module in ("trl", "peft", "datasets"):
        require(module, "trl", what=what)
