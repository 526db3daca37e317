"""What the extension adds to the console script: `corsa train` and `corsa demo`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from corsa_plugins.cli import passthrough
from corsa_plugins.errors import require

__all__ = ["demo", "train"]


@passthrough
def train(argv: Sequence[str]) -> int:
    """Train a CoRSA adapter from a file of edit requests, through TRL."""
    _require_trl("corsa train")
    from trl_ext.train import main

    main(argv, prog="corsa train")
    return 0


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for adapters and results.")] = Path(
        "runs/demo"
    ),
    size: Annotated[int, typer.Option(min=1, max=400, help="Edits in a round.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the edits, the adapters and the order of the data.")] = 0,
) -> None:
    """Edit facts of the embedded testbed with LoRA SFT and with CoRSA, and compare.

    Needs no GPU, no network and no files: the testbed, a small model that knows a small world, comes with the package.
    Two rounds of edits are trained on one adapter, by each method. Printed are one table (efficacy, generality,
    old-knowledge retention and specificity after round 1, and what is left of round 1 after round 2), and three
    questions with the answers before and after.

    \b
    EXAMPLES
      corsa demo
      corsa demo --seed 1 --output runs/again

    \b
    FILES
      DIR/METHOD/round-1/ and round-2/           adapters that PEFT loads
      DIR/METHOD/evaluation-*/records.jsonl      every prompt and answer behind the table
    """
    _require_trl("corsa demo")
    from trl_ext.demo import run_demo

    run_demo(output, size=size, seed=seed)


def _require_trl(what: str) -> None:
    for module in ("trl", "peft", "datasets"):
        require(module, "trl", what=what)
