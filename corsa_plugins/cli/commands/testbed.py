"""``corsa testbed``."""

from __future__ import annotations

from typing import Annotated

import typer

from corsa_plugins.cli import options
from corsa_plugins.cli.terminal import show
from corsa_plugins.errors import SettingError

__all__ = ["get_testbed"]


def get_testbed(
    output: options.OptionalOutput = None,
    check: Annotated[bool, typer.Option("--check", help="Measure that it knows its world and can be edited.")] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Train it from nothing into OUTPUT/model (minutes), not copy it.")
    ] = False,
    seed: options.Seed = 0,
) -> None:
    """Get a small model of a small world, with facts to edit.

    The testbed ships with the package, so everything can be tried without a download. --output writes it as an ordinary
    Hugging Face model with three rounds of 100 edit requests, and 500 facts that no round touches.

    \b
    EXAMPLES
      corsa testbed --output world
      corsa testbed --check
      corsa testbed --rebuild --output world --check

    \b
    FILES
      OUTPUT/model/             the model and its tokenizer
      OUTPUT/round_1.jsonl ...  edit requests, round_1 to round_3
      OUTPUT/untouched.jsonl    facts of people whom no round edits
      OUTPUT/same_subject.jsonl the other facts of the edited people
      OUTPUT/texts.txt          documents of the kind it was trained on, for corsa stats

    \b
    EXIT CODES
      0 done; 1 a check failed; 2 wrong usage or a damaged testbed; 130 interrupted
    """
    from rich.table import Table

    from corsa_plugins.outputs import check_output
    from corsa_plugins.testbed import TestbedRecipe, load_testbed
    from corsa_plugins.testbed.checks import check_testbed
    from corsa_plugins.testbed.export import rebuild_testbed, write_testbed

    if rebuild and output is None:
        raise SettingError("--rebuild needs --output: name the folder to build into")
    if output:
        check_output(output)
    if output and rebuild:
        bed, written = rebuild_testbed(TestbedRecipe(), output, seed=seed)
    else:
        bed = load_testbed()
        written = write_testbed(bed, output, seed=seed) if output else []
    if output:
        typer.echo(f"written to {output}: {', '.join(written)}")
    elif not check:
        typer.echo(f"the testbed is in {bed.path}; write it and its edit requests to a folder with --output")
    if not check:
        return
    promises = check_testbed(bed)
    table = Table("", "share, %", "at least, %", "")
    for promise in promises:
        verdict = "ok" if promise.kept else "FAILED"
        table.add_row(promise.name, f"{100 * promise.share:.1f}", f"{100 * promise.least:.0f}", verdict)
    show(table)
    if not all(promise.kept for promise in promises):
        raise typer.Exit(1)
