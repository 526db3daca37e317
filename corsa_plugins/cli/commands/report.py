"""``corsa report``: one page out of what other commands have written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from corsa_plugins.cli import options
from corsa_plugins.cli.terminal import harmless
from corsa_plugins.errors import SettingError

__all__ = ["report"]


def report(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="[LABEL=]PATH...", help="Files and folders that commands have written; see below."),
    ],
    output: options.Output,
    title: Annotated[str | None, typer.Option(help="Of the page.  [default: what it is about]")] = None,
    later: options.Later = False,
) -> None:
    """Put what commands have written on one page.

    Each path is recognised by what it is. The page is one HTML file that opens anywhere, offline. Of two evaluations,
    the first is from before the edits; with --later it is from right after the update.

    \b
    UNDERSTOOD                                    SHOWN AS
      a folder of corsa evaluate                  a column of the results, in the order given, and every answer; the
                                                  change where there are two; general ability if it was asked for
      results of corsa merge-sweep                edits kept against facts retained
      what corsa edit or corsa diagnose -o wrote  histograms of conflicts
      report.json of corsa train and other edits  what each update did
      trainer_state.json, history.json            log-probabilities and margins over training
      forgetting.json                             forgetting over the share of the data used
      harness.json                                general ability
      curvature.json (see corsa_plugins.bench.curvature.save_curvature)

    A folder that holds such files stands for all of them. LABEL=PATH says what it is called on the page.

    \b
    EXAMPLES
      corsa report results/baseline results -o page.html
      corsa report before=base LoRA=lora CoRSA=corsa runs/corsa/checkpoint-50 -o page.html --title "Ten facts"
      corsa report sweep/sweep.jsonl edited/report.json foresight -o page.html

    \b
    FILES
      OUTPUT  the page, such as page.html

    \b
    EXIT CODES
      0 done; 2 a path that is not understood, or wrong usage; 130 interrupted
    """
    from corsa_plugins.report.page import versions, write_report
    from corsa_plugins.report.sources import read_sources

    if output.is_dir():
        raise IsADirectoryError(f"{output} is a folder: name a file, such as {output / 'page.html'}")
    sources = read_sources(paths)
    if output.resolve() in map(Path.resolve, map(Path, sources.given)):
        raise SettingError(f"--output {output} is one of the files to be read: name another")
    if output.is_file() and not output.read_bytes()[:15].lower() == b"<!doctype html>":
        raise SettingError(f"--output {output} is there, and is no page, which could be replaced: name another file")
    asked = {"command": "corsa report", **sources.given, **versions()}
    write_report(output, sources.report(title, asked, later=later))
    for path, what in sources.given.items():
        typer.echo(harmless(f"{path}: {what}"))
    typer.echo(f"written to {output}")
