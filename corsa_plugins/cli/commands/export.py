"""``corsa export``: edits as a LoRA adapter for the servers that take one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from corsa_plugins.cli import options
from corsa_plugins.cli.publishing import Publisher
from corsa_plugins.cli.terminal import show
from corsa_plugins.cli.values import load, place
from corsa_plugins.errors import SettingError

if TYPE_CHECKING:
    from corsa_plugins.adapters import AdapterForm, Exported
    from corsa_plugins.model.placement import Where

__all__ = ["export"]


def export(
    edits: Annotated[Path, typer.Argument(help="A folder written by corsa edit, or an edited model.")],
    adapter: options.AdapterFolder,
    model: options.OptionalModel = None,
    batch: Annotated[
        list[str] | None, typer.Option("--batch", help="Only this batch of the edits, by name; may be repeated.")
    ] = None,
    rank: Annotated[int | None, typer.Option("--rank", min=1, help="Compress to this rank.")] = None,
    max_rank: Annotated[int, typer.Option("--max-rank", min=1, help="Refuse what would be larger.")] = 512,
    statistics: options.OptionalStatistics = None,
    requests: options.OptionalRequests = None,
    adapter_dtype: Annotated[
        str, typer.Option("--adapter-dtype", help="Of what is written: float32, bfloat16, float16.")
    ] = "float32",
    chat_template: options.ChatTemplate = False,
    push_to_hub: options.PushToHub = None,
    private: options.Private = False,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    max_memory: options.MaxMemory = None,
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Write edits as a LoRA adapter that PEFT, vLLM and llama.cpp's converter read.

    An edit state holds its updates as products: the adapter is exact, with a rank for each edit in force. --rank leaves
    the least out, by the keys of the edits and, with --statistics, of what should stay; with --model, the model from
    before the edits, the edits' prompts are asked with and without what is left out. Of an edited model (R-SFT, a
    merge) the difference to --model is written, which is exact where the rank suffices; --requests says what to ask it.
    vLLM's largest rank is 16 if nothing else is said to it, and 512 at most: the command prints the flag that it needs.
    Of a mixture of experts the adapter is for PEFT alone.

    \b
    EXAMPLES
      corsa export edited --adapter adapter
      corsa export edited --batch monday --adapter monday --push-to-hub me/monday --private
      corsa export edited --model M --rank 16 --statistics stats --adapter small
      corsa export trained --model M --rank 64 --requests facts.jsonl --adapter trained-adapter

    \b
    FILES
      ADAPTER/adapter_config.json, adapter_model.safetensors   a LoRA adapter of the model from before the edits
      ADAPTER/corsa.json                                       which model that is, by its weights, and which batches
      ADAPTER/README.md                                        a card that says so to people

    \b
    EXIT CODES
      0 done; 2 wrong usage, unusable files, or a rank that is too large; 130 interrupted
    """
    from corsa_plugins.adapters import AdapterForm
    from corsa_plugins.alphaedit import KeyStatistics
    from corsa_plugins.alphaedit.edited import state_folder
    from corsa_plugins.hub import Made
    from corsa_plugins.outputs import check_output

    check_output(adapter)
    publish = Publisher(push_to_hub, private)
    where = place(device, device_map, max_memory)
    form = AdapterForm(rank, max_rank, adapter_dtype, KeyStatistics.load(statistics) if statistics else None)

    def card(folder: Path, written: Exported) -> None:
        publish.card(Made(model, figures=_figures(written)))(folder)

    is_state = (state_folder(edits) / "state.json").is_file()
    if is_state:
        if requests or chat_template:
            raise SettingError("--requests and --chat-template are for edited models: an edit state knows its own")
        exported = _of_state(edits, adapter, form, batch or [], model, where, dtype, quiet, card)
    else:
        if batch:
            raise SettingError(f"--batch is for edit states, and {edits} holds none")
        exported = _of_model(edits, adapter, form, model, requests, chat_template, where, dtype, quiet, card)
    missing = "--model, the model from before the edits" if is_state and not model else ""
    _tell(exported, missing if is_state or requests else "--requests")
    publish.upload(exported.path)


# Eight parameters and more here and below: the command's options, passed on.
def _of_state(
    edits: Path,
    adapter: str,
    form: AdapterForm,
    batches: list[str],
    model: str | None,
    device: Where,
    dtype: str,
    quiet: bool,
    card: Callable[[Path, Exported], object],
) -> Exported:
    from corsa_plugins.adapters import Asked, export_state
    from corsa_plugins.alphaedit import EditState
    from corsa_plugins.alphaedit.edited import state_folder

    state = EditState.load(state_folder(edits))
    asked = Asked(*load(model, device, dtype, quiet)) if model else None
    return export_state(state, adapter, batches=batches, form=form, base=model, asked=asked, card=card)


def _of_model(
    edits: Path,
    adapter: str,
    form: AdapterForm,
    model: str | None,
    requests: Path | None,
    chat_template: bool,
    device: Where,
    dtype: str,
    quiet: bool,
    card: Callable[[Path, Exported], object],
) -> Exported:
    from corsa_plugins.adapters import Asked, export_difference
    from corsa_plugins.alphaedit.edited import whole_model
    from corsa_plugins.data.reading import read_requests

    if model is None:
        raise SettingError(f"{edits} holds no edit state: give --model, the model from before, to take the difference")
    facts = read_requests(requests) if requests else []
    loaded, tokenizer = load(model, device, dtype, quiet)
    edited, _ = load(str(whole_model(edits)), device, dtype, quiet)
    asked = Asked(loaded, tokenizer, chat_template=chat_template)
    return export_difference(edited, asked, adapter, form=form, called=model, requests=facts, card=card)


def _figures(exported: Exported) -> dict[str, str]:
    losses = [module.loss for module in exported.modules.values()]
    told = {"left out, of the norm of the change on the keys, at most": f"{100 * max(losses):.2g} %"}
    if exported.efficacy:
        whole, left = exported.efficacy
        told["efficacy with the whole change, with the adapter"] = f"{100 * whole:.1f} %, {100 * left:.1f} %"
    return told


def _tell(exported: Exported, missing: str) -> None:
    from rich.table import Table

    from corsa_plugins.adapters import vllm_rank

    table = Table(title="ranks, and what is left out: its norm on the keys, of that of the whole change")
    for heading in ("module", "needed", "rank", "left out, %"):
        table.add_column(heading, justify="left" if heading == "module" else "right")
    for name, module in exported.modules.items():
        table.add_row(name, str(module.ranks), str(module.rank), f"{100 * module.loss:.2g}" if module.loss else "0")
    show(table)
    if exported.efficacy:
        whole, left = exported.efficacy
        typer.echo(f"efficacy with the whole change {100 * whole:.1f} %, with the adapter {100 * left:.1f} %")
    elif missing and any(module.rank < module.ranks for module in exported.modules.values()):
        typer.echo(f"to see what fewer ranks cost in answers, give {missing}: the edits are asked with both")
    flag = vllm_rank(exported.rank)
    serve = f"vLLM: --enable-lora --max-lora-rank {flag}" if flag else "vLLM takes no rank above 512"
    if exported.beside_experts:
        serve = "PEFT 0.19 and later load it; for vLLM and llama.cpp serve the edited model, whose experts are fused"
    typer.echo(f"written to {exported.path}: rank {exported.rank}; {serve}")
