"""``corsa diagnose``: what an edit would meet, before anything is edited."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from corsa_plugins.cli import options
from corsa_plugins.cli.methods import check_diagnose
from corsa_plugins.cli.terminal import show
from corsa_plugins.cli.values import check_folder, load, parse_layers, place

__all__ = ["diagnose"]


def diagnose(
    model: options.Model,
    requests: options.Requests,
    statistics: options.Statistics,
    method: Annotated[str, options.method_option()] = "alphaedit+",
    settings: options.Settings = None,
    layers: options.Layers = None,
    state: options.State = None,
    values: Annotated[
        bool, typer.Option("--values", help="Look for value vectors too: which targets are out of reach (slower).")
    ] = False,
    output: options.OptionalOutput = None,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    max_memory: options.MaxMemory = None,
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
) -> None:
    """See which requests fight each other, earlier edits, or what the model should keep, before editing.

    Conflicts are cosines between keys at the edited layers, from 0 to 1: with a sample of preserved keys (K0, Eq. 3),
    with their whole space (Eq. 6), with earlier edits (Kp), and with the other requests. From about 0.9 on, expect an
    edit to be held back, or to pull the other along. --settings are those of --method, as for corsa edit; a method that
    edits no keys in closed form has nothing to diagnose.

    \b
    EXAMPLES
      corsa diagnose --model M --requests facts.jsonl --statistics stats --layers 4,5,6
      corsa diagnose --model M --requests facts.jsonl --statistics stats --settings llama3-8b --values \\
          --output foresight
      corsa diagnose --model M --requests facts.jsonl --statistics stats --method memit --settings llama3-8b
      corsa diagnose --model edited/model --state edited/state --requests more.jsonl --statistics stats --layers 4,5,6

    \b
    FILES
      OUTPUT/diagnosis.jsonl  the conflicts of each request
      OUTPUT/diagnosis.png    their distribution

    \b
    EXIT CODES
      0 done; 2 wrong usage or unusable files; 130 interrupted
    """
    from corsa_plugins.alphaedit import EditState, KeyStatistics
    from corsa_plugins.alphaedit.edited import edit_settings, editor_with, state_folder
    from corsa_plugins.data.reading import read_requests
    from corsa_plugins.files import atomic_write_text
    from corsa_plugins.methods.registry import method_spec

    spec = method_spec(method)
    check_diagnose(spec)
    facts = read_requests(requests)
    earlier = EditState.load(state_folder(state)) if state else None
    numbers = parse_layers(layers)
    chosen = edit_settings(settings, numbers, earlier, spec.settings_class())
    check_folder(output)
    keys = KeyStatistics.load(statistics)
    loaded, tokenizer = load(model, place(device, device_map, max_memory), dtype, quiet)
    editing: Any = spec(statistics=keys, settings=chosen)
    used = editing.choose(loaded, tokenizer, facts, numbers or ()).settings
    editor = editor_with(loaded, tokenizer, keys, used, earlier)
    diagnosis = editor.diagnose(facts, values=values, progress=not quiet)
    show(diagnosis.table())
    if output:
        lines = (json.dumps(row, ensure_ascii=False) for row in diagnosis.rows())
        atomic_write_text(output / "diagnosis.jsonl", "".join(f"{line}\n" for line in lines))
        diagnosis.figure(output / "diagnosis.png")
        typer.echo(f"written to {output}")
