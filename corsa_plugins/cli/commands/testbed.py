"""``corsa testbed``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from corsa_plugins.cli.terminal import show
from corsa_plugins.errors import SettingError

__all__ = ["get_testbed"]


def get_testbed(
    out: Annotated[Path | None, typer.Option(help="Folder to write the model and the requests files to.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Measure that it knows its world and can be edited.")] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Train it from nothing into OUT/model (minutes), not copy it.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Which facts are edited, and to what.")] = 0,
) -> None:
    """Get a small model of a small world, with facts to edit.

    The testbed ships with the package, so everything can be tried without a download. --out writes it as an ordinary
    Hugging Face model with three rounds of 100 edit requests, and 500 facts that no round touches.

    \b
    EXAMPLES
      corsa testbed --out world
      corsa testbed --check
      corsa testbed --rebuild --out world --check

    \b
    FILES
      OUT/model/             the model and its tokenizer
      OUT/round_1.jsonl ...  edit requests, round_1 to round_3
      OUT/untouched.jsonl    facts of people whom no round edits
      OUT/same_subject.jsonl the other facts of the edited people
      OUT/texts.txt          documents of the kind it was trained on, for corsa stats

    \b
    EXIT CODES
      0 done; 1 a check failed; 2 wrong usage or a damaged testbed; 130 interrupted
    """
    from corsa_plugins.data.reading import write_requests
    from corsa_plugins.files import atomic_write_text
    from corsa_plugins.testbed import TestbedRecipe, build_testbed, load_testbed, texts_of_testbed

    if rebuild and out is None:
        raise SettingError("--rebuild needs --out: name the folder to build into")
    if rebuild and out:
        bed = build_testbed(TestbedRecipe(), out / "model")
    else:
        bed = load_testbed()
        if out:
            shutil.copytree(bed.path, out / "model", dirs_exist_ok=True)
    if out:
        plan = bed.world.edit_rounds(n_rounds=3, size=100, seed=seed, untouched=500)
        files = {f"round_{number}": requests for number, requests in enumerate(plan.rounds, start=1)}
        for name, requests in {**files, "untouched": plan.untouched, "same_subject": plan.same_subject}.items():
            write_requests(out / f"{name}.jsonl", requests)
        atomic_write_text(out / "texts.txt", "".join(f"{text}\n" for text in texts_of_testbed(bed, 3000)))
        typer.echo(f"written to {out}: model, {', '.join(files)}, untouched, same_subject, texts.txt")
    elif not check:
        typer.echo(f"the testbed is in {bed.path}; write it and its edit requests to a folder with --out")
    if check and not _testbed_holds(bed):
        raise typer.Exit(1)


def _testbed_holds(bed: Any) -> bool:
    """Show whether the testbed keeps its promises."""
    from rich.table import Table

    from corsa_plugins.testbed.checks import knowledge, value_reach

    shares = {f"facts known, {form}": (share, 0.99) for form, share in knowledge(bed).items()}
    reach = value_reach(bed, n=min(100, len(bed.world.people)), seed=0)
    shares["edits reached by a vector at the last subject token"] = (reach.reached, 0.9)
    table = Table("", "share, %", "at least, %", "")
    for name, (share, least) in shares.items():
        table.add_row(name, f"{100 * share:.1f}", f"{100 * least:.0f}", "ok" if share >= least else "FAILED")
    show(table)
    return all(share >= least for share, least in shares.values())
