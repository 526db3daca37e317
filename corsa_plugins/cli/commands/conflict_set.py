"""``corsa conflict-set``: sets of edit requests that are hard for a model and the edits in force."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from corsa_plugins.cli import options
from corsa_plugins.cli.terminal import show
from corsa_plugins.cli.values import check_unread, load, parse_layers, place
from corsa_plugins.errors import SettingError

__all__ = ["SetKind", "build_conflict_set"]


class SetKind(StrEnum):
    """What is hard about a set."""

    PRESERVED = "preserved"
    PRIOR = "prior"
    INCONSISTENT = "inconsistent"


def build_conflict_set(
    kind: Annotated[SetKind, typer.Argument(help="What is hard about it; see below.")],
    model: options.Model,
    requests: options.RequestsFiles,
    statistics: options.Statistics,
    output: options.Output,
    size: options.Size,
    hard_share: Annotated[float, typer.Option(min=0, max=1, help="The share of hard ones; the rest is drawn.")] = 0.2,
    settings: options.Settings = None,
    layers: options.Layers = None,
    state: options.State = None,
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
    keep: options.Keep = None,
    seed: options.Seed = 0,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    max_memory: options.MaxMemory = None,
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Build a set of edit requests that is hard for a model and the edits in force.

    A fifth of the set are the candidates of the highest figures, and the others are drawn from the rest, as in
    AlphaSet1 to 3 (AlphaEdit+ paper, B.1). Nothing is edited. Candidates, of --requests, which may be repeated, need
    subjects.

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
      OUTPUT.about.json     e.g. hard.about.json: what they were made by and of
      VALIDATION            rewordings with their new answers, and the facts of --keep

    \b
    EXIT CODES
      0 done; 2 wrong usage or unusable files; 130 interrupted
    """
    from corsa_plugins.alphaedit import EditState, KeyStatistics
    from corsa_plugins.alphaedit.edited import edit_settings, editor_with, settings_on, state_folder
    from corsa_plugins.bench import conflict_sets
    from corsa_plugins.data.reading import read_probes, read_requests, write_probes

    plan = conflict_sets.ConflictPlan(kind.value, size, hard_share, residual_at, seed)
    if kind is SetKind.PRIOR and state is None:
        raise SettingError(
            "prior needs --state: the edits that new ones are to conflict with, as corsa edit writes them"
        )
    if reword and kind is not SetKind.PRIOR:
        raise SettingError("--reword goes with prior: it rewords the edits in force")
    if keep and not validation:
        raise SettingError("--keep goes with --validation: its facts are for the validation set")
    if validation and validation.absolute() == output.absolute():
        raise SettingError(f"{output}: name another file for the validation set")
    for path in filter(None, (output, validation)):
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a directory: name a file in it")
    figures = conflict_sets.figures_file(output)
    written = [path for path in (output, figures, conflict_sets.about_file(output), validation) if path]
    check_unread(written, [*requests, *(exclude or []), *([keep] if keep else [])])
    candidates = [request for path in requests for request in read_requests(path)]
    others = [request for path in exclude or [] for request in read_requests(path)]
    facts = read_probes(keep) if keep else []
    earlier = EditState.load(state_folder(state)) if state else None
    numbers = parse_layers(layers)
    chosen = edit_settings(settings, numbers, earlier)
    if reword and earlier is not None:
        edited = [request for batch in earlier.batches for request in batch.requests]
        again = conflict_sets.rewordings(edited, candidates, plan.n_hard, seed=seed)
        typer.echo(f"{len(again)} of {len(edited)} edits in force reworded, for {plan.n_hard} hard requests")
        candidates = [*again, *candidates]
    known = KeyStatistics.load(statistics)
    loaded, tokenizer = load(model, place(device, device_map, max_memory), dtype, quiet)
    used = settings_on(loaded, tokenizer, known, chosen, candidates, numbers or ())
    editor = editor_with(loaded, tokenizer, known, used, earlier)
    candidates = conflict_sets.first_of_each_prompt(candidates)
    built = conflict_sets.conflict_set(editor, candidates, plan, exclude=others, progress=not quiet)
    if validation:  # what can go wrong with it, before anything is written
        probes = conflict_sets.validation_probes(built.requests, share=validation_share, seed=seed)
    built.save(output)
    if validation:
        write_probes(validation, [*probes, *facts])
    show(built.table())
    typer.echo(f"written to {', '.join(map(str, written))}")
