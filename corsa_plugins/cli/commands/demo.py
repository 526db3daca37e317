"""``corsa demo``: every method on the embedded testbed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from corsa_plugins.cli import options
from corsa_plugins.cli.values import check_results

__all__ = ["demo"]


def demo(
    output: options.Output = Path("runs/demo"),
    method: Annotated[
        list[str] | None, options.method_option("  May be repeated.  [default: those with a * there]")
    ] = None,
    atlas: Annotated[
        Path | None, typer.Option(help="Of what a pretrained model knows: a folder that corsa atlas wrote.")
    ] = None,
    size: options.Size = 100,
    seed: options.Seed = 0,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes at a time.  [default: one for each core]")] = None,
) -> None:
    """Edit facts of the embedded testbed, or of a pretrained model, by every method, and compare.

    Needs no GPU, no network and no files: the testbed, a small model that knows a small world, comes with the package.
    With --atlas it edits what a pretrained model truly knows (corsa atlas), every method with the settings it has when
    none are given. Two rounds of --size edits, the second on top of the first. Printed are the path of the report, what
    each method learned, kept and forgot after each round, and three questions with the answers before and after.

    A stopped demo goes on where it was when the same command is given again; a finished one only shows its results.

    \b
    EXAMPLES
      corsa demo
      corsa demo --seed 1 --output runs/again
      corsa atlas --output real
      corsa demo --atlas real --size 20 --output runs/real
      corsa demo --method lora-sft --method f-learning --method corsa --output runs/adapters

    \b
    FILES
      OUTPUT/report.html                 tables, training, conflicts, and every prompt with every answer; opens offline
      OUTPUT/METHOD/updates/             adapter, edit state, or changed weights and mergekit recipe of each round
      OUTPUT/METHOD/evaluations/         every prompt and answer at every moment

    \b
    EXIT CODES
      0 done; 2 wrong usage, or a missing extra; 130 interrupted
    """
    from corsa_plugins.demo.run import run_demo
    from corsa_plugins.demo.worlds import AtlasWorld, Rounds

    check_results(output, "corsa protocol")  # in whose form its results are
    world = AtlasWorld(atlas) if atlas else None
    rounds = Rounds(size, seed, untouched=60) if atlas else Rounds(size, seed)
    run_demo(output, rounds, world=world, methods=method, workers=jobs)
