"""``corsa edit`` and ``corsa diagnose``: AlphaEdit+ on the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from corsa_plugins.cli.editing import STATE, edit_settings, load_quietly, state_folder
from corsa_plugins.cli.terminal import show
from corsa_plugins.errors import SettingError

__all__ = ["diagnose", "edit"]

MODEL = "model"
REPORT = "report.json"

_Model = Annotated[str, typer.Option("--model", "-m", help="The model: a folder, or a name on the Hub.")]
_Requests = Annotated[Path, typer.Option("--requests", "-r", help="Edit requests, JSON Lines; each with a subject.")]
_Statistics = Annotated[Path, typer.Option("--statistics", "-s", help="Folder written by corsa stats.")]
_Settings = Annotated[
    str | None,
    typer.Option(help="YAML file of settings, or a preset: testbed, gpt2-xl, gpt-j-6b, llama3-8b, ..."),
]
_Layers = Annotated[str | None, typer.Option(help="Blocks to edit, such as 4,5,6,7,8; overrides --settings.")]
_State = Annotated[Path | None, typer.Option(help="Earlier edits in force: a folder written by corsa edit.")]
_Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...  [default: a GPU if there is one]")]
_Dtype = Annotated[str, typer.Option(help="auto (as saved; float32 for float16 on a CPU), float32, bfloat16, float16.")]
_Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]


def edit(
    model: _Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the edited model and the edit state.")],
    requests: Annotated[
        Path | None, typer.Option("--requests", "-r", help="Edit requests, JSON Lines; each with a subject.")
    ] = None,
    statistics: Annotated[
        Path | None, typer.Option("--statistics", "-s", help="Folder written by corsa stats.")
    ] = None,
    settings: _Settings = None,
    layers: _Layers = None,
    state: _State = None,
    revert: Annotated[
        list[str] | None, typer.Option(help="Take a batch of --state out again, by name, or all; may be repeated.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What to call this batch.  [default: a number]")] = None,
    method: Annotated[
        str, typer.Option(help="alphaedit+, or alphaedit: the same with its three parts off.")
    ] = "alphaedit+",
    keep: Annotated[
        Path | None, typer.Option(help='Facts to watch while targets are smoothed, JSON Lines: {"prompt", "answer"}.')
    ] = None,
    delta_only: Annotated[
        bool, typer.Option("--delta-only", help="Write the edit state alone: what changed, not the whole model.")
    ] = False,
    device: _Device = None,
    dtype: _Dtype = "auto",
    quiet: _Quiet = False,
) -> None:
    """Edit facts in a model's weights with AlphaEdit+.

    Closed-form edits in a relaxed null space of what the model should keep, with conflict-aware weights on earlier
    edits and smoothed targets. The requests of one call are one batch; --state goes on from earlier ones, and --revert
    takes batches out again: with all reverted, the weights are those from before the first edit, bit for bit.

    \b
    EXAMPLES
      corsa stats --model M --text wiki.jsonl --layers 4,5,6,7,8 --output stats
      corsa edit --model M --requests facts.jsonl --statistics stats --settings llama3-8b --output edited
      corsa edit --model edited/model --state edited/state --requests more.jsonl --statistics stats \\
          --settings llama3-8b --output edited2
      corsa edit --model edited2/model --state edited2/state --revert 1 --output without_1

    \b
    FILES
      OUTPUT/model/       the edited model, in the format and precision it was loaded in, and its tokenizer
      OUTPUT/state/       keys and updates of every batch in force, and the edited layers from before
      OUTPUT/report.json  what became of each request

    \b
    EXIT CODES
      0 done, also if some requests were not taken (the report says which); 2 wrong usage or unusable files;
      130 interrupted
    """
    from corsa_plugins.alphaedit import AlphaEditor, EditState, KeyStatistics
    from corsa_plugins.data.reading import read_probes, read_requests
    from corsa_plugins.files import atomic_directory

    _check_usage(requests, statistics, state, revert, name, output)
    asked = read_requests(requests) if requests else []
    watched = read_probes(keep) if keep else []
    earlier = EditState.load(state_folder(state)) if state else None
    chosen = edit_settings(settings, layers, method, earlier) if requests else None
    if chosen is None:
        assert earlier is not None  # _check_usage
        chosen = earlier.batches[-1].settings if earlier.batches else None
        if chosen is None:
            raise SettingError(f"{state} has no batch in force: there is nothing to revert")
    known = KeyStatistics.load(statistics) if statistics else None
    loaded, tokenizer = load_quietly(model, device, dtype, quiet)
    editor = AlphaEditor(loaded, tokenizer, known, chosen, state=earlier)
    if earlier:
        editor.apply()
    report = None
    for batch in revert or []:
        editor.revert_all() if batch == "all" else editor.revert(batch)
    if asked:
        report = editor.edit(asked, name=name, keep=watched, progress=not quiet)
        show(report.table())
    with atomic_directory(output) as folder:
        editor.state.save(folder / STATE)
        if not delta_only:
            loaded.save_pretrained(folder / MODEL)
            tokenizer.save_pretrained(folder / MODEL)
        if report:
            text = json.dumps({"settings": chosen.as_dict(), **report.as_dict()}, indent=1, ensure_ascii=False)
            (folder / REPORT).write_text(text, encoding="utf-8")
    in_force = ", ".join(batch.name for batch in editor.state.batches) or "none"
    typer.echo(f"written to {output}; batches in force: {in_force}")


def diagnose(
    model: _Model,
    requests: _Requests,
    statistics: _Statistics,
    settings: _Settings = None,
    layers: _Layers = None,
    state: _State = None,
    values: Annotated[
        bool, typer.Option("--values", help="Look for value vectors too: which targets are out of reach (slower).")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for diagnosis.jsonl and diagnosis.png.")
    ] = None,
    device: _Device = None,
    dtype: _Dtype = "auto",
    quiet: _Quiet = False,
) -> None:
    """See which requests fight each other, earlier edits, or what the model should keep, before editing.

    Conflicts are cosines between keys at the edited layers, from 0 to 1: with a sample of preserved keys (K0, Eq. 3),
    with their whole space (Eq. 6), with earlier edits (Kp), and with the other requests. From about 0.9 on, expect an
    edit to be held back, or to pull the other along.

    \b
    EXAMPLES
      corsa diagnose --model M --requests facts.jsonl --statistics stats --layers 4,5,6
      corsa diagnose --model M --requests facts.jsonl --statistics stats --settings llama3-8b --values \\
          --output foresight
      corsa diagnose --model edited/model --state edited/state --requests more.jsonl --statistics stats --layers 4,5,6

    \b
    EXIT CODES
      0 done; 2 wrong usage or unusable files; 130 interrupted
    """
    from corsa_plugins.alphaedit import AlphaEditor, EditState, KeyStatistics
    from corsa_plugins.data.reading import read_requests
    from corsa_plugins.files import atomic_write_text

    asked = read_requests(requests)
    earlier = EditState.load(state_folder(state)) if state else None
    chosen = edit_settings(settings, layers, "alphaedit+", earlier)
    if output and output.exists() and not output.is_dir():
        raise NotADirectoryError(f"{output} is a file: name a folder")
    known = KeyStatistics.load(statistics)
    loaded, tokenizer = load_quietly(model, device, dtype, quiet)
    editor = AlphaEditor(loaded, tokenizer, known, chosen, state=earlier)
    if earlier:
        editor.apply()
    diagnosis = editor.diagnose(asked, values=values, progress=not quiet)
    show(diagnosis.table())
    if output:
        lines = (json.dumps(row, ensure_ascii=False) for row in diagnosis.rows())
        atomic_write_text(output / "diagnosis.jsonl", "".join(f"{line}\n" for line in lines))
        diagnosis.figure(output / "diagnosis.png")
        typer.echo(f"written to {output}")


def _check_usage(
    requests: Path | None,
    statistics: Path | None,
    state: Path | None,
    revert: list[str] | None,
    name: str | None,
    output: Path,
) -> None:
    if not requests and not revert:
        raise SettingError("nothing to do: give --requests to edit, or --state and --revert to take edits back")
    if requests and not statistics:
        raise SettingError("--requests needs --statistics: collect them once for the model with corsa stats")
    if revert and not state:
        raise SettingError("--revert needs --state: the folder that corsa edit wrote")
    if name == "all":
        raise SettingError("name is 'all', which --revert takes for every batch: choose another name")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise SettingError(f"{output} exists and is not an empty folder: name a new one")
    # Before hours of work, not after them.
    parent = next(folder for folder in output.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise SettingError(f"{output} cannot be made: {parent} is no folder that can be written to; name another one")
