"""``corsa convert``: published data sets of edits into files of edit requests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from corsa_plugins.cli import options
from corsa_plugins.cli.terminal import harmless
from corsa_plugins.data.formats.registry import format_names
from corsa_plugins.errors import SettingError
from corsa_plugins.paths import user_path

__all__ = ["convert"]


def convert(
    source: Annotated[
        str | None,
        typer.Argument(metavar="IN", help="A file: JSON, JSON Lines, Parquet. With --hub: a data set, or nothing."),
    ] = None,
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="The file of edit requests to write, JSON Lines.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--format", "-f", help=f"The format of IN: {', '.join(format_names())}.  [default: told from its fields]"
        ),
    ] = None,
    hub: Annotated[bool, typer.Option("--hub", help="Read from the Hugging Face Hub.")] = False,
    split: options.OptionalSplit = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Read at most so many records.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first record that is malformed or contradicts one before.")
    ] = False,
    rounds: Annotated[
        bool, typer.Option("--rounds", help="Write successive updates of the same fact to OUT.round-1, -2, ...")
    ] = False,
    problems: Annotated[
        Path | None,
        typer.Option("--to-problems", help="Of code: the file to write programming problems with their tests to."),
    ] = None,
    listing: Annotated[bool, options.list_option(more="  With --format: what becomes of its fields.")] = False,
) -> None:
    """Convert a published data set of edits to edit requests.

    Says what was read, which fields became what, what was dropped and why, and which records are malformed: those
    are skipped. Of requests that contradict each other the first is kept; --rounds keeps all, in successive files.
    --split is one of a data set on the Hub, by default the first that --list shows.

    \b
    EXAMPLES
      corsa convert --list
      corsa convert --list --format mquake
      corsa convert --format counterfact counterfact.json facts.jsonl --limit 1000
      corsa convert --format atoke-me AToKe-ME.json history.jsonl --rounds
      corsa convert --format codeupdatearena arena-ungrouped.jsonl updates.jsonl --to-problems problems.jsonl
      corsa convert --format knowedit --hub --split wiki_recent recent.jsonl

    \b
    FILES
      OUT                     one edit request per line, written whole or not at all
      --to-problems FILE      one problem per line, for corsa evaluate-code; those in OUT are marked as trained on
      OUT.round-N (--rounds)  facts.jsonl gives facts.round-1.jsonl, facts.round-2.jsonl, ...

    \b
    EXIT CODES
      0 done, also if malformed records were skipped; 2 wrong usage, an unusable file, nothing to convert, or a
      malformed record with --strict; 130 interrupted
    """
    from corsa_plugins.data.formats.convert import convert_to_requests
    from corsa_plugins.data.formats.registry import formats, get_format
    from corsa_plugins.data.formats.source import HUB_PREFIX

    if listing:
        for line in [get_format(name).details()] if name else [form.summary() for form in formats()]:
            typer.echo(harmless(line))
        return
    if hub and out is None and source is not None:
        source, out = "", Path(source)
    if out is None or source is None:
        raise SettingError("name two files: corsa convert IN OUT (with --hub, OUT is enough; see corsa convert --help)")
    # A file is a file, whatever it is called: only --hub asks the Hub.
    data = f"{HUB_PREFIX}{source}" if hub else str(user_path(source).absolute())
    done = convert_to_requests(
        data, out, name=name, rounds=rounds, strict=strict, limit=limit, split=split, problems=problems
    )
    for line in done.lines():
        typer.echo(harmless(line))
    for path in done.other_rounds:
        typer.echo(f"note: {path} was there before and is not one of these rounds", err=True)
