"""``corsa merge-adapters``: several LoRA adapters of one base into one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from corsa_plugins.cli import options
from corsa_plugins.cli.terminal import show
from corsa_plugins.cli.values import parse_numbers, place
from corsa_plugins.errors import SettingError, require

__all__ = ["merge_adapters"]


def merge_adapters(
    adapters: Annotated[list[str], typer.Argument(help="Folders of two or more LoRA adapters of one base.")],
    output: options.Output,
    weights: options.OptionalWeights = None,
    model: options.OptionalModel = None,
    combination: Annotated[
        str, typer.Option(help="PEFT's combination: cat (exact), svd, linear, ties, dare_linear, magnitude_prune, ...")
    ] = "cat",
    density: Annotated[float | None, typer.Option(help="For combinations that prune.")] = None,
    over: Annotated[
        str | None,
        typer.Option(
            help="Merge two adapters over a range of weights instead: the first one's parts, such as 0,0.5,1."
        ),
    ] = None,
    total: Annotated[float, typer.Option(help="With --over: the sum of the two weights.")] = 1.0,
    label: options.Label = None,
    requests: options.OptionalRequestsFiles = None,
    batch_size: options.BatchSize = 64,
    chat_template: options.ChatTemplate = False,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    max_memory: options.MaxMemory = None,
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Combine LoRA adapters of one base into one, and measure what each forgot.

    The combination is PEFT's own, and checked against the weights: cat gives exactly the weighted sum of the adapters'
    weight changes, at the sum of their ranks. --weights has a number for each, by default equal ones with sum 1;
    --model is by default the base that the adapters name. With one --requests per adapter, in their order, each adapter
    alone and the merged one answer that file; forgetting is the difference.

    --over merges two adapters exactly over a range of weights, w of the first and 1 - w of the second, and writes what
    each forgot and both together (CoRSA paper, B.1); --label says what made them, and corsa report draws several.

    \b
    EXAMPLES
      corsa merge-adapters runs/a runs/b --weights 0.5 0.5 --output runs/ab
      corsa merge-adapters runs/a runs/b --weights 1 1 --output runs/ab --requests a.jsonl --requests b.jsonl

      corsa merge-adapters runs/a runs/b --over 0,0.25,0.5,0.75,1 -r a.jsonl -r b.jsonl --label CoRSA -o merged/corsa

    \b
    FILES
      OUTPUT/adapter_model.safetensors, adapter_config.json   an adapter that PEFT loads
      OUTPUT/forgetting/ADAPTER/own, merged                   every prompt and answer, with --requests
      OUTPUT/merging.json                                     with --over, and nothing else

    \b
    EXIT CODES
      0 done; 2 wrong usage or an unusable adapter or file; 130 interrupted
    """
    require("peft", "trl", what="corsa merge-adapters")
    from transformers.utils.logging import disable_progress_bar

    from corsa_plugins.bench import merge_adapters as merging
    from corsa_plugins.data.reading import read_requests

    if quiet:
        disable_progress_bar()
    where = place(device, device_map, max_memory)
    scales = parse_numbers(weights, "--weights") if weights else []
    if weights:
        # an option takes one value: the others of `--weights 0.5 0.5` come as further arguments
        numbers = [text for text in adapters if _is_number(text) and not Path(text).exists()]
        adapters = [text for text in adapters if text not in numbers]
        scales += map(float, numbers)
    if over is not None:
        if weights or density is not None or combination != "cat":
            raise SettingError("--over has weights of its own, and adds exactly: leave out --weights, --combination")
        points = merging.merge_over_weights(
            adapters, [read_requests(path) for path in requests or []], parse_numbers(over, "--over"), total=total,
            method=label or " and ".join(Path(path).name for path in adapters), model=model, device=where, dtype=dtype,
            batch_size=batch_size, chat_template=chat_template, progress=not quiet,
        )  # fmt: skip
        merging.save_points(points, output)
        show(merging.over_weights_table(points))
        typer.echo(f"written to {output}")
        return
    merged = merging.merge_adapters(
        merging.weighted_adapters(adapters, scales, [read_requests(path) for path in requests or []]),
        output,
        model=model,
        combination=combination,
        density=density,
        device=where,
        dtype=dtype,
        batch_size=batch_size,
        chat_template=chat_template,
        progress=not quiet,
    )
    typer.echo(
        f"{len(adapters)} adapters by {combination}, rank {merged.rank}: relative distance from the weighted sum of "
        f"their weights {merged.distance:.1e}"
    )
    if merged.forgetting:
        merging.save_forgetting(merged.forgetting, output / "forgetting")
        show(merging.forgetting_table(merged.forgetting))
    typer.echo(f"written to {output}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
