"""``corsa convert``: published data sets of edits into files of edit requests."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from corsa_plugins.data.formats.registry import format_names
from corsa_plugins.errors import SettingError

if TYPE_CHECKING:
    from corsa_plugins.data.formats.base import Format, FormatResult
    from corsa_plugins.data.requests import EditRequest

__all__ = ["convert"]

SHOWN = 20
"""How many problems are listed; the rest is counted."""


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
    split: Annotated[str | None, typer.Option(help="Split of the data set on the Hub.  [default: see --list]")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Read at most so many records.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first record that is malformed or contradicts one before.")
    ] = False,
    rounds: Annotated[
        bool, typer.Option("--rounds", help="Write successive updates of the same fact to OUT.round-1, -2, ...")
    ] = False,
    listing: Annotated[
        bool, typer.Option("--list", help="Show the formats, or what becomes of the fields of --format, and exit.")
    ] = False,
) -> None:
    """Convert a published data set of edits to edit requests.

    Says what was read, which fields became what, what was dropped and why, and which records are malformed: those
    are skipped. Of requests that contradict each other the first is kept; --rounds keeps all, in successive files.

    \b
    EXAMPLES
      corsa convert --list
      corsa convert --list --format mquake
      corsa convert --format counterfact counterfact.json facts.jsonl --limit 1000
      corsa convert --format atoke-me AToKe-ME.json history.jsonl --rounds
      corsa convert --format knowedit --hub --split wiki_recent recent.jsonl

    \b
    FILES
      OUT                     one edit request per line, written whole or not at all
      OUT.round-N (--rounds)  facts.jsonl gives facts.round-1.jsonl, facts.round-2.jsonl, ...

    \b
    EXIT CODES
      0 done, also if malformed records were skipped; 2 wrong usage, an unusable file, nothing to convert, or a
      malformed record with --strict; 130 interrupted
    """
    from corsa_plugins.data.contradictions import first_of_contradictions, split_rounds
    from corsa_plugins.data.formats.base import FormatError
    from corsa_plugins.data.formats.read import read_format
    from corsa_plugins.data.formats.registry import formats, get_format
    from corsa_plugins.data.formats.source import HUB_PREFIX
    from corsa_plugins.data.reading import write_requests

    if listing:
        if name is None:
            for form in formats():
                typer.echo(_summary(form))
        else:
            typer.echo(_details(get_format(name)))
        return
    if hub and out is None and source is not None:
        source, out = "", Path(source)
    if out is None or source is None:
        raise SettingError("name two files: corsa convert IN OUT (with --hub, OUT is enough; see corsa convert --help)")
    if out.is_dir():
        raise IsADirectoryError(f"{out} is a directory: name a file in it")
    if not hub and out.exists() and Path(source).exists() and out.samefile(source):
        raise SettingError(f"{out} is the file that is read: name another file to write")

    # A file is a file, whatever it is called: only --hub asks the Hub.
    place = f"{HUB_PREFIX}{source}" if hub else str(Path(source).expanduser().absolute())
    result = read_format(name, place, strict=strict, limit=limit, split=split)
    files: dict[Path, list[EditRequest]]
    left_out: list[str] = []
    if rounds:
        parts = split_rounds(result.requests)
        files = {out.with_name(f"{out.stem}.round-{at}{out.suffix}"): part for at, part in enumerate(parts, start=1)}
    else:
        kept, left_out = first_of_contradictions(result.requests)
        if strict and left_out:
            raise FormatError(f"{result.source}: {left_out[0]}; --rounds keeps both, in successive files")
        files = {out: kept}
    for path, requests in files.items():
        write_requests(path, requests)
    _report(result, get_format(result.format), left_out)
    for path, requests in files.items():
        typer.echo(f"written to {path}: {len(requests)} requests")
    for path in sorted(out.parent.glob(f"{glob.escape(out.stem)}.round-*{glob.escape(out.suffix)}") if rounds else ()):
        if path not in files:
            typer.echo(f"note: {path} was there before and is not one of these rounds", err=True)


def _report(result: FormatResult, form: Format, left_out: list[str]) -> None:
    from corsa_plugins.data.contradictions import check_requests

    typer.echo(f"read {result.read} records of {result.source} as {form.name}: {len(result.requests)} requests")
    typer.echo("mapped:")
    for field, becomes in result.mapping.items():
        typer.echo(f"  {field} -> {becomes}")
    typer.echo(f"dropped: {sum(result.dropped.values())} values" if result.dropped else "dropped: nothing")
    reasons = {field.replace("[]", ""): why for field, why in form.dropped.items()}
    for field, count in sorted(result.dropped.items(), key=lambda item: -item[1]):
        why = reasons.get(field)
        typer.echo(f"  {field}: {count}" + (f" ({why})" if why else ""))
    repeated = sum(len(same.indices) - 1 for same in check_requests(result.requests).duplicates)
    if repeated:
        typer.echo(f"repeated requests: {repeated} (kept: such an edit counts more than once)")
    _echo_list("malformed, skipped", [str(problem) for problem in result.problems])
    if left_out:
        _echo_list("contradicting an earlier request, left out (--rounds keeps them)", left_out)


def _echo_list(title: str, lines: list[str]) -> None:
    typer.echo(f"{title}: {len(lines)}")
    for line in lines[:SHOWN]:
        typer.echo(f"  {line}")
    if len(lines) > SHOWN:
        typer.echo(f"  ... and {len(lines) - SHOWN} more")


def _summary(form: Format) -> str:
    lines = [f"{form.name}", f"  {form.description}", f"  {form.homepage}; licence: {form.licence}"]
    lines.append(f"  from: {form.obtain}")
    if form.hub:
        lines.append(f"  on the Hub: {form.hub.name} ({', '.join(form.hub.splits)})")
    return "\n".join(lines)


def _details(form: Format) -> str:
    used = [f"  {field} -> {becomes}" for field, becomes in form.mapping.items()]
    unused = [f"  {field}: {why}" for field, why in form.dropped.items()]
    return "\n".join([_summary(form), "mapped:", *used, "dropped:", *unused])
