"""``corsa conflict-set``: sets of edit requests that are hard for a model and the edits in force."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from corsa_plugins.cli.editing import edit_settings, load_quietly, state_folder
from corsa_plugins.cli.terminal import show
from corsa_plugins.errors import SettingError

if TYPE_CHECKING:
    from corsa_plugins.data.requests import EditRequest

__all__ = ["SetKind", "build_conflict_set"]


class SetKind(StrEnum):
    """What is hard about a set."""

    PRESERVED = "preserved"
    PRIOR = "prior"
    INCONSISTENT = "inconsistent"


def build_conflict_set(
    kind: Annotated[SetKind, typer.Argument(help="What is hard about it; see below.")],
    model: Annotated[str, typer.Option("--model", "-m", help="The model: a folder, or a name on the Hub.")],
    requests: Annotated[
        list[Path],
        typer.Option("--requests", "-r", help="Candidates, JSON Lines; each with a subject; may be repeated."),
    ],
    statistics: Annotated[Path, typer.Option("--statistics", "-s", help="Folder written by corsa stats.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file of edit requests to write, JSON Lines.")],
    size: Annotated[int, typer.Option(min=1, help="Requests in the set.")],
    hard_share: Annotated[float, typer.Option(min=0, max=1, help="The share of hard ones; the rest is drawn.")] = 0.2,
    settings: Annotated[
        str | None,
        typer.Option(help="YAML file of settings, or a preset: testbed, gpt2-xl, gpt-j-6b, llama3-8b, ..."),
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Blocks to edit, such as 4,5,6,7,8; overrides --settings.")] = None,
    state: Annotated[Path | None, typer.Option(help="Edits in force: a folder written by corsa edit.")] = None,
    reword: Annotated[
        bool, typer.Option("--reword", help="With prior: put rewordings of the edits in force among the candidates.")
    ] = False,
    residual_at: Annotated[
        int | None,
        typer.Option(
            min=1, help="With inconsistent: at which edited layer, from 1.  [default: the third, or the last]"
        ),
    ] = None,
    exclude: Annotated[
        list[Path] | None, typer.Option(help="Requests that are not to be in the set, such as another set; repeated.")
    ] = None,
    validation: Annotated[
        Path | None, typer.Option(help="Also write a validation set, to give to corsa edit as --keep.")
    ] = None,
    validation_share: Annotated[
        float, typer.Option(min=0, max=1, help="The share of requests it has a rewording of.")
    ] = 0.1,
    keep: Annotated[
        Path | None, typer.Option(help='Facts that should stay, for the validation set: {"prompt", "answer"}.')
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draws and of the order.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...  [default: a GPU if there is one]")] = None,
    dtype: Annotated[
        str, typer.Option(help="auto (as saved; float32 for float16 on a CPU), float32, bfloat16, float16.")
    ] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
) -> None:
    """Build a set of edit requests that is hard for a model and the edits in force.

    A fifth of the set are the candidates of the highest figures, and the others are drawn from the rest, as in
    AlphaSet1 to 3 (AlphaEdit+ paper, B.1). Nothing is edited.

    \b
    KINDS
      preserved     keys in conflict with what the model should keep
      prior         keys in conflict with earlier edits (needs --state); with --reword the candidates are joined by
                    earlier edits asked in other words and with other answers, as many as hard ones are wanted
      inconsistent  targets far from what the model believes, ||v* - Wk||, when the edit comes to its third layer

    \b
    EXAMPLES
      corsa conflict-set preserved --model M -r zsre.jsonl --statistics stats --settings llama3-8b --size 1000 \\
          --output hard-1.jsonl
      corsa conflict-set prior --model edited/model --state edited --reword -r zsre.jsonl --exclude hard-1.jsonl \\
          --statistics stats --settings llama3-8b --size 1000 --output hard-2.jsonl --validation validation-2.jsonl
      corsa conflict-set inconsistent --model M -r zsre.jsonl -r counterfact.jsonl --exclude hard-1.jsonl \\
          --exclude hard-2.jsonl --statistics stats --settings llama3-8b --size 1500 --output hard-3.jsonl

    \b
    FILES
      OUTPUT                e.g. hard.jsonl: the set
      OUTPUT.figures.jsonl  e.g. hard.figures.jsonl: whether each request is a hard one, and its conflicts
      VALIDATION            rewordings with their new answers, and the facts of --keep

    \b
    EXIT CODES
      0 done; 2 wrong usage or unusable files; 130 interrupted
    """
    from corsa_plugins.alphaedit import AlphaEditor, EditState, KeyStatistics
    from corsa_plugins.bench.conflict_sets import conflict_set, rewordings, validation_probes
    from corsa_plugins.data.reading import read_probes, read_requests, write_probes, write_requests
    from corsa_plugins.files import atomic_write_text

    _check_usage(kind, state, reword, residual_at, output, validation, keep)
    candidates = [request for path in requests for request in read_requests(path)]
    others = [request for path in exclude or [] for request in read_requests(path)]
    facts = read_probes(keep) if keep else []
    earlier = EditState.load(state_folder(state)) if state else None
    chosen = edit_settings(settings, layers, "alphaedit+", earlier)
    n_hard = round(hard_share * size)
    if reword and earlier is not None:
        edited = [request for batch in earlier.batches for request in batch.requests]
        found = rewordings(edited, candidates, n_hard, seed=seed)
        typer.echo(f"{len(found)} of {len(edited)} edits in force reworded, for {n_hard} hard requests")
        candidates = [*found, *candidates]
    candidates = _first_of_each_prompt(candidates)
    known = KeyStatistics.load(statistics)
    loaded, tokenizer = load_quietly(model, device, dtype, quiet)
    editor = AlphaEditor(loaded, tokenizer, known, chosen, state=earlier)
    if earlier:
        editor.apply()
    built = conflict_set(
        editor,
        candidates,
        kind.value,
        size,
        hard_share=hard_share,
        residual_at=residual_at,
        exclude=others,
        seed=seed,
        progress=not quiet,
    )
    # Everything that can go wrong before anything is written.
    probes = [*validation_probes(built.requests, share=validation_share, seed=seed), *facts] if validation else []
    rows: list[dict[str, Any]] = [
        {"name": request.name(place), "hard": hard, **figures}
        for place, (request, hard, figures) in enumerate(
            zip(built.requests, built.hard, built.figures, strict=True), start=1
        )
    ]
    write_requests(output, built.requests)
    figures_file = output.with_name(f"{output.stem}.figures.jsonl")
    atomic_write_text(figures_file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    if validation:
        write_probes(validation, probes)
    show(built.table())
    written = ", ".join(str(path) for path in (output, figures_file, validation) if path)
    typer.echo(f"written to {written}")


def _check_usage(
    kind: SetKind,
    state: Path | None,
    reword: bool,
    residual_at: int | None,
    output: Path,
    validation: Path | None,
    keep: Path | None,
) -> None:
    if kind is SetKind.PRIOR and state is None:
        raise SettingError(
            "prior needs --state: the edits that new ones are to conflict with, as corsa edit writes them"
        )
    if reword and kind is not SetKind.PRIOR:
        raise SettingError("--reword goes with prior: it rewords the edits in force")
    if residual_at is not None and kind is not SetKind.INCONSISTENT:
        raise SettingError("--residual-at goes with inconsistent")
    if keep and not validation:
        raise SettingError("--keep goes with --validation: its facts are for the validation set")
    if validation and validation.absolute() == output.absolute():
        raise SettingError(f"{output}: name another file for the validation set")
    for path in (output, validation):
        if path is not None and path.is_dir():
            raise IsADirectoryError(f"{path} is a directory: name a file in it")


def _first_of_each_prompt(requests: Sequence[EditRequest]) -> list[EditRequest]:
    """A set can be read back only if no two of its requests contradict each other."""
    first: dict[str, EditRequest] = {}
    for request in requests:
        first.setdefault(" ".join(request.prompt.split()), request)
    return list(first.values())
