"""``corsa edit``: facts edited into a model by any method."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from corsa_plugins.cli import options
from corsa_plugins.cli.methods import check_edit, own_options, plain_settings, said_to_stay, show_trial
from corsa_plugins.cli.publishing import Publisher
from corsa_plugins.cli.terminal import show
from corsa_plugins.cli.values import load, parse_layers, place

__all__ = ["edit"]


def edit(
    model: options.Model,
    output: options.Output,
    requests: options.OptionalRequests = None,
    method: Annotated[str, options.method_option()] = "alphaedit+",
    statistics: options.OptionalStatistics = None,
    settings: options.Settings = None,
    layers: options.Layers = None,
    option: options.OwnOptions = None,
    state: options.State = None,
    revert: Annotated[
        list[str] | None, typer.Option(help="Take a batch of --state out again, by name, or all; may be repeated.")
    ] = None,
    name: options.BatchName = None,
    keep: options.Keep = None,
    delta_only: options.DeltaOnly = False,
    chat_template: options.ChatTemplate = False,
    seed: options.Seed = 0,
    push_to_hub: options.PushToHub = None,
    private: options.Private = False,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    max_memory: options.MaxMemory = None,
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Edit facts into a model, by default into its weights with AlphaEdit+.

    AlphaEdit+ and AlphaEdit make closed-form edits in a null space of what the model should keep. The requests of one
    call, each with a subject, are one batch; --state goes on from earlier ones, and --revert takes batches out again:
    with all reverted, the weights are those from before the first edit, bit for bit. Facts of --keep are watched while
    targets are smoothed. Other methods train the weights or an adapter, for good: --state, --revert, --name, --keep,
    --layers and --delta-only are not for them.

    Without --settings (or with --settings auto) layers, values, null space and ridge are chosen for the model: facts
    that it knows, none of them yours, are edited on trial and taken back bit for bit. What was chosen is said, and kept
    with the statistics.

    \b
    EXAMPLES
      corsa stats --model M --text wiki.jsonl --layers 4-8 --output stats
      corsa edit --model M --requests facts.jsonl --statistics stats --output edited
      corsa edit --model M --requests facts.jsonl --statistics stats --settings llama3-8b --output edited
      corsa edit --model edited/model --state edited/state --requests more.jsonl --statistics stats \\
          --settings llama3-8b --output edited2
      corsa edit --model edited2/model --state edited2/state --revert 1 --output without_1
      corsa edit --model M --requests facts.jsonl --method rsft-merged --output trained --push-to-hub me/trained

    \b
    FILES
      OUTPUT/model/       the edited model, in the format and precision it was loaded in, and its tokenizer
      OUTPUT/adapter/     of a method that trains one: the adapter, of OUTPUT/model if that is there, else of MODEL;
                          of a quantised MODEL, whose weights stay as they are: the edits, in place of OUTPUT/model
      OUTPUT/facts.jsonl  of in-context: the edits as text; the model stays as it is
      OUTPUT/state/       of AlphaEdit: keys and updates of every batch in force, and the edited layers from before
      OUTPUT/report.json  what became of each request
      OUTPUT/README.md    a card: what was edited, of which model, by what method and settings, with which figures

    \b
    EXIT CODES
      0 done, also if some requests were not taken (the report says which); 2 wrong usage or unusable files;
      130 interrupted
    """
    from corsa_plugins.adapters import save_edits
    from corsa_plugins.alphaedit import EditState, KeyStatistics
    from corsa_plugins.alphaedit.auto import AUTO
    from corsa_plugins.alphaedit.edited import (
        change_edits,
        edit_settings,
        editor_with,
        last_settings,
        state_folder,
    )
    from corsa_plugins.data.reading import read_probes, read_requests
    from corsa_plugins.hub import Made, fingerprint_of
    from corsa_plugins.methods.edit import save_update
    from corsa_plugins.methods.registry import method_spec
    from corsa_plugins.methods.spec import in_form
    from corsa_plugins.model.stored import check_target

    spec = method_spec(method)
    of_batches = {"state": state, "revert": revert, "name": name, "keep": keep, "layers": layers}
    check_edit(spec, requests, statistics, {**of_batches, "delta-only": delta_only}, output)
    facts = read_requests(requests) if requests else []
    probes = read_probes(keep) if keep else []
    earlier = EditState.load(state_folder(state)) if state else None
    arguments = own_options(spec, option or [])
    if settings:
        arguments["settings"] = settings
    numbers = parse_layers(layers)
    if spec.reversible:
        kind = spec.settings_class()
        arguments["settings"] = edit_settings(settings, numbers, earlier, kind) if facts else last_settings(earlier)
    if spec.needs_statistics:
        arguments["statistics"] = KeyStatistics.load(statistics) if statistics else None
    chosen: Any = in_form(spec(**arguments), chat_template)
    publish = Publisher(push_to_hub, private)
    if stay := said_to_stay(spec, model):
        typer.echo(stay)
    loaded, tokenizer = load(model, place(device, device_map, max_memory), dtype, quiet)
    check_target(loaded, output)
    if not spec.reversible:
        base = fingerprint_of(loaded)
        made = Made(model, spec.name, plain_settings(chosen), fingerprint=base, facts=facts)
        kept: Any = {"changes": spec.changes, "seed": seed, "card": publish.card(made)}
        saved = save_update(chosen, loaded, tokenizer, facts, output, **kept)
        if saved.effect:
            typer.echo(saved.effect)
        parts = " and ".join(folder.name for folder in (saved.model, saved.adapter, saved.store) if folder)
        typer.echo(f"written to {output}: {parts or 'no adapter, as the model gives every new answer already'}")
        publish.upload(output)
        return
    choice = chosen.choose(loaded, tokenizer, facts, numbers or (), None if quiet else show_trial)
    if chosen.settings == AUTO:
        typer.echo(f"settings chosen {choice.reason}")
    editor = editor_with(loaded, tokenizer, chosen.statistics, choice.settings, earlier)
    report = change_edits(editor, facts, revert=revert or (), name=name, keep=probes, progress=not quiet)
    if report:
        show(report.table())
    made = Made(model if earlier is None else None, spec.name)
    save_edits(editor, output, report, whole=not delta_only, card=publish.card(made))
    in_force = ", ".join(batch.name for batch in editor.state.batches) or "none"
    typer.echo(f"written to {output}; batches in force: {in_force}")
    publish.upload(output)
