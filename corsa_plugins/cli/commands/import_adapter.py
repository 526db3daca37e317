"""``corsa import``: a LoRA adapter as a batch of edits that can be taken out again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from corsa_plugins.cli import options
from corsa_plugins.cli.values import load, place

__all__ = ["import_adapter"]


def import_adapter(
    adapter: Annotated[Path, typer.Argument(help="The folder of a LoRA adapter.")],
    model: options.Model,
    output: options.Output,
    state: options.State = None,
    name: options.BatchName = None,
    any_base: Annotated[
        bool, typer.Option("--any-base", help="The adapter's base is this model, though it has another name.")
    ] = False,
    delta_only: options.DeltaOnly = False,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    max_memory: options.MaxMemory = None,
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Take a LoRA adapter into a model's edits, as a batch that corsa edit --revert takes out again.

    The adapter may come from corsa export, corsa train or any tool that writes PEFT's folders, so long as it is plain
    LoRA of linear maps; DoRA, trained biases and whole modules are refused by name. Batches come out in any order, and
    with all of them out the weights are the originals, bit for bit.

    \b
    EXAMPLES
      corsa import monday --model M --name monday --output edited
      corsa import runs/capitals --model edited/model --state edited --output edited2
      corsa edit --model edited2/model --state edited2 --revert monday --output edited3

    \b
    FILES
      OUTPUT/model/   the changed model, in the format and precision it was loaded in, and its tokenizer;
                      of a quantised MODEL, OUTPUT/adapter in its place: all batches in force as one adapter
      OUTPUT/state/   every batch in force, and the changed layers from before

    \b
    EXIT CODES
      0 done; 2 wrong usage, unusable files, or an adapter of another base; 130 interrupted
    """
    from corsa_plugins.adapters import adopt_adapter, adopting_editor, read_adapter, save_edits
    from corsa_plugins.alphaedit import EditState
    from corsa_plugins.alphaedit.edited import state_folder
    from corsa_plugins.errors import SettingError
    from corsa_plugins.outputs import check_output

    check_output(output)
    if name == "all":
        raise SettingError("name is 'all', which --revert takes for every batch: choose another name")
    update = read_adapter(adapter)
    earlier = EditState.load(state_folder(state)) if state else None
    loaded, tokenizer = load(model, place(device, device_map, max_memory), dtype, quiet)
    editor = adopting_editor(loaded, tokenizer, update, earlier)
    batch = adopt_adapter(editor, update, name=name, called=model, any_base=any_base)
    save_edits(editor, output, whole=not delta_only)
    rank = max(update.left.shape[1] for update in batch.layers.values())
    in_force = ", ".join(one.name for one in editor.state.batches)
    typer.echo(f"batch {batch.name}: rank {rank} in {len(batch.layers)} modules")
    typer.echo(f"written to {output}; batches in force: {in_force}")
