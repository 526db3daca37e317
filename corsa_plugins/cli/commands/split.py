"""``corsa split``: a requests file in parts, for an adapter each."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from corsa_plugins.cli.terminal import show
from corsa_plugins.errors import SettingError

if TYPE_CHECKING:
    from corsa_plugins.data.requests import EditRequest

__all__ = ["By", "split"]


class By(StrEnum):
    """What the requests of a part may have in common."""

    TEMPLATE = "template"
    SUBJECT = "subject"
    TARGET_NEW = "target-new"
    TARGET_OLD = "target-old"


def split(
    requests: Annotated[Path, typer.Argument(metavar="REQUESTS", help="Edit requests, JSON Lines.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the parts.")],
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
    from corsa_plugins.bench.routing.parts import split_requests
    from corsa_plugins.data.reading import read_requests, write_requests
    from corsa_plugins.files import atomic_directory

    if parts is None and by is None:
        raise SettingError("how to split? give --parts, --by, or both")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise SettingError(f"{output} exists and is not an empty folder: name a new one")
    asked = read_requests(requests)
    groups = split_requests(asked, parts or 1) if by is None else split_requests(asked, _key(by), parts)
    width = len(str(len(groups)))
    table = Table(title=f"{len(asked)} requests in {len(groups)} parts")
    for heading in ("part", "requests", "for instance"):
        table.add_column(heading, justify="right" if heading == "requests" else "left")
    with atomic_directory(output) as folder:
        for number, group in enumerate(groups, start=1):
            name = f"part-{number:0{width}}.jsonl"
            write_requests(folder / name, group)
            table.add_row(name, str(len(group)), list_prompts(group, 2))
    show(table)
    typer.echo(f"written to {output}")


def _key(by: By) -> Callable[[EditRequest], str]:
    from corsa_plugins.bench.routing.parts import request_template

    if by is By.TEMPLATE:
        return request_template
    field = by.value.replace("-", "_")

    def value(request: EditRequest) -> str:
        found = getattr(request, field)
        if found is None:
            raise SettingError(f"{request.name()} has no {field}: give it one, or split by something else")
        return str(found)

    return value
