"""``corsa split``: a requests file in parts, for an adapter each."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from corsa_plugins.cli import options
from corsa_plugins.cli.terminal import show
from corsa_plugins.errors import SettingError

__all__ = ["By", "split"]


class By(StrEnum):
    """What the requests of a part may have in common."""

    TEMPLATE = "template"
    SUBJECT = "subject"
    TARGET_NEW = "target-new"
    TARGET_OLD = "target-old"


def split(
    requests: Annotated[Path, typer.Argument(metavar="REQUESTS", help="Edit requests, JSON Lines.")],
    output: options.Output,
    parts: Annotated[
        int | None, typer.Option(min=1, help="How many parts.  [default with --by: one for each value]")
    ] = None,
    by: Annotated[By | None, typer.Option(help="Keep requests together that share this.")] = None,
) -> None:
    """Split a file of edit requests into parts, for an adapter each.

    Without --by the parts are of consecutive requests and of equal size. With --by, requests that share a value stay
    together, and --parts puts such groups together to parts of about equal size. `template` is the prompt without its
    subject, which requests of one relation often share: parts that are about different things are the easiest to find
    the right adapter among.

    \b
    EXAMPLES
      corsa split facts.jsonl --parts 5 --output parts
      corsa split facts.jsonl --by template --parts 5 --output parts
      for n in 1 2 3 4 5; do
          corsa train --config run.yaml --requests parts/part-$n.jsonl --output_dir adapters/part-$n
      done
      corsa evaluate-adapters --help

    \b
    FILES
      OUTPUT/part-1.jsonl ...  every request in one of them, in its order; all are written, or none

    \b
    EXIT CODES
      0 done; 2 wrong usage or an unusable file; 130 interrupted
    """
    from rich.table import Table

    from corsa_plugins.bench.routing.descriptions import list_prompts
    from corsa_plugins.bench.routing.parts import shared_value, split_requests, write_parts
    from corsa_plugins.data.reading import read_requests

    if parts is None and by is None:
        raise SettingError("how to split? give --parts, --by, or both")
    everything = read_requests(requests)
    if by is None:
        groups = split_requests(everything, parts or 1)
    else:
        groups = split_requests(everything, shared_value(by.value.replace("-", "_")), parts)
    table = Table(title=f"{len(everything)} requests in {len(groups)} parts")
    for heading in ("part", "requests", "for instance"):
        table.add_column(heading, justify="right" if heading == "requests" else "left")
    for file, group in zip(write_parts(groups, output), groups, strict=True):
        table.add_row(file.name, str(len(group)), list_prompts(group, 2))
    show(table)
    typer.echo(f"written to {output}")
