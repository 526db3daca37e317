"""What the extension adds to the console script: `corsa merge`, `corsa merge-adapters` and `corsa merge-sweep`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from corsa_plugins.cli.plugin import passthrough, show
from corsa_plugins.errors import SettingError, require

__all__ = ["merge", "merge_adapters", "merge_sweep"]

_DEVICE = typer.Option(help="cpu, cuda, cuda:1, ...  [default: a GPU if there is one]")
_DTYPE = typer.Option(help="auto (as saved; float32 for float16 on a CPU), float32, bfloat16 or float16.")


@passthrough
def merge(argv: Sequence[str]) -> int:
    """Merge models by a mergekit recipe, with scaled_pruned_delta among the methods."""
    from mergekit_ext.commands import merge_command

    merge_command.main(args=list(argv), prog_name="corsa merge", standalone_mode=False)
    return 0


def merge_adapters(
    adapters: Annotated[list[str], typer.Argument(help="Folders of two or more LoRA adapters of one base.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder for the merged adapter.")],
    weights: Annotated[
        str | None, typer.Option(help="One per adapter: --weights 0.5 0.5.  [default: equal, with sum 1]")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="The base.  [default: the adapters']")] = None,
    combination: Annotated[
        str, typer.Option(help="PEFT's combination: cat (exact), svd, linear, ties, dare_linear, magnitude_prune, ...")
    ] = "cat",
    density: Annotated[float | None, typer.Option(help="For combinations that prune.")] = None,
    requests: Annotated[
        list[Path] | None, typer.Option("--requests", "-r", help="Requests of each adapter, in the same order.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences per forward pass.")] = 64,
    chat_template: Annotated[bool, typer.Option("--chat-template", help="Ask through the chat template.")] = False,
    device: Annotated[str | None, _DEVICE] = None,
    dtype: Annotated[str, _DTYPE] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
) -> None:
    """Combine LoRA adapters of one base into one, and measure what each forgot.

    The combination is PEFT's own, and checked against the weights: cat gives exactly the weighted sum of the adapters'
    weight changes, at the sum of their ranks. With one requests file per adapter, each adapter alone and the merged one
    answer that file; forgetting is the difference.

    \b
    EXAMPLES
      corsa merge-adapters runs/a runs/b --weights 0.5 0.5 --output runs/ab
      corsa merge-adapters runs/a runs/b --weights 1 1 --output runs/ab --requests a.jsonl --requests b.jsonl

    \b
    FILES
      DIR/adapter_model.safetensors, adapter_config.json   an adapter that PEFT loads
      DIR/forgetting/ADAPTER/own, merged                   every prompt and answer, with --requests

    \b
    EXIT CODES
      0 done; 2 wrong usage or an unusable adapter or file; 130 interrupted
    """
    for module in ("peft", "mergekit"):
        require(module, "mergekit", what="corsa merge-adapters")
    from transformers.utils.logging import disable_progress_bar

    from corsa_plugins.bench.evaluation import compare, save_evaluation
    from corsa_plugins.data.reading import read_requests
    from mergekit_ext.adapters import merge_adapters as run

    if quiet:
        disable_progress_bar()
    scales = _numbers(weights, "--weights") if weights else []
    if weights:
        # an option takes one value: the others of `--weights 0.5 0.5` come as further arguments
        numbers = [text for text in adapters if _is_number(text) and not Path(text).exists()]
        adapters = [text for text in adapters if text not in numbers]
        scales += map(float, numbers)
    asked = [read_requests(path) for path in requests or []]
    merged = run(
        adapters,
        scales or [1 / len(adapters)] * len(adapters),
        output,
        model=model,
        combination=combination,
        density=density,
        requests=asked,
        device=device,
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
        from rich.table import Table

        table = Table(title="forgetting: the adapter alone minus the merged one, points, with 95 % intervals")
        for heading in ("", "requests", "metric", "alone, %", "merged, %", "forgetting"):
            table.add_column(heading, justify="right")
        for index, item in enumerate(merged.forgetting):
            folder = output / "forgetting" / f"{index}-{item.own.label}"
            save_evaluation(item.own, folder / "own")
            save_evaluation(item.merged, folder / "merged")
            changes = compare(item.own, item.merged)
            for name in ("efficacy", "generality"):
                if name in changes:
                    change = changes[name]
                    lost = change.difference
                    forgotten = (0.0 - 100 * value for value in (lost.mean, lost.high, lost.low))
                    interval = "{:.1f}  [{:.1f}, {:.1f}]".format(*forgotten)
                    means = (f"{100 * change.before.mean:.1f}", f"{100 * change.after.mean:.1f}")
                    table.add_row(item.own.label, str(len(item.own.records)), name, *means, interval)
        show(table)
    typer.echo(f"written to {output}")


def merge_sweep(
    base: Annotated[str, typer.Option(help="The model before the edits: a folder, or a name on the Hub.")],
    requests: Annotated[Path, typer.Option("--requests", "-r", help="The edits, JSON Lines.")],
    untouched: Annotated[Path, typer.Option(help="Facts that no edit is about, JSON Lines.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results; an earlier sweep goes on.")],
    edited: Annotated[str | None, typer.Option(help="The edited model.")] = None,
    adapter: Annotated[str | None, typer.Option(help="Or an adapter: the edited model is the base with it.")] = None,
    weights: Annotated[str, typer.Option(help="Weights to try, in one argument.")] = "0.2 0.4 0.6 0.8 1",
    densities: Annotated[str, typer.Option(help="Densities to try, in one argument.")] = "0.05 0.1 0.2 0.5 1",
    floor: Annotated[float, typer.Option(help="Share of the untouched facts that the best merge must retain.")] = 0.99,
    metric: Annotated[
        str | None, typer.Option(help="What the best merge has most of.  [default: generality, else efficacy]")
    ] = None,
    per_row: Annotated[bool, typer.Option("--per-row", help="Prune every row, not the whole matrix.")] = False,
    prune_vectors: Annotated[bool, typer.Option(help="Prune norms and biases too.")] = True,
    plot: Annotated[bool, typer.Option(help="Draw the trade-off (needs the extra eval).")] = True,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences per forward pass.")] = 64,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Length of the answers in tokens.")] = None,
    chat_template: Annotated[bool, typer.Option("--chat-template", help="Ask through the chat template.")] = False,
    device: Annotated[str | None, _DEVICE] = None,
    dtype: Annotated[str, _DTYPE] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
) -> None:
    """Try weights and densities of a merge in memory: what of the edits stays, and what of everything else.

    Each pair is measured on the requests and on the untouched facts. Points are written as they come; the same
    command again measures only what is missing. The best point has the most generality (or --metric) among those that
    retain --floor of the untouched facts that the base answers right.

    \b
    EXAMPLES
      corsa merge-sweep --base M --edited M-edited --requests facts.jsonl --untouched others.jsonl --output sweep
      corsa merge-sweep --base M --adapter runs/facts --requests facts.jsonl --untouched others.jsonl \\
          --weights '0.4 0.8' --densities '0.1 0.2 1' --floor 0.95 --output sweep
      corsa merge sweep/best.yaml merged

    \b
    FILES
      DIR/sweep.jsonl    a line per merge, after one on what was swept over
      DIR/tradeoff.png   the plot
      DIR/best.yaml      the mergekit recipe of the best merge

    \b
    EXIT CODES
      0 done; 1 no merge meets the floor; 2 wrong usage or an unusable model or file; 130 interrupted
    """
    require("mergekit", "mergekit", what="corsa merge-sweep")
    if plot:
        require("matplotlib", "eval", what="the trade-off plot (leave it out with --no-plot)")
    from transformers.utils.logging import disable_progress_bar

    from corsa_plugins.data.reading import read_probes, read_requests
    from corsa_plugins.files import atomic_write_text
    from corsa_plugins.model.loading import load_model
    from mergekit_ext.sweep import best_point, sweep
    from mergekit_ext.sweep_report import point_recipe, sweep_plot, sweep_table

    if quiet:
        disable_progress_bar()
    if (edited is None) == (adapter is None):
        raise SettingError("what was edited? Give --edited or --adapter, one of them")
    if not 0 <= floor <= 1:
        raise SettingError(f"--floor is {floor}: it must lie between 0 and 1, for instance 0.99")
    grid = _numbers(weights, "--weights"), _numbers(densities, "--densities")
    asked, facts = read_requests(requests), read_probes(untouched)
    before, tokenizer = load_model(base, device=device, dtype=dtype)
    after: Any = load_model(edited or base, adapter, device=device, dtype=dtype)[0]
    if adapter:
        after = after.merge_and_unload()
    points = sweep(
        before,
        after,
        tokenizer,
        asked,
        facts,
        weights=grid[0],
        densities=grid[1],
        results=output / "sweep.jsonl",
        per_row=per_row,
        prune_vectors=prune_vectors,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        chat_template=chat_template,
        progress=not quiet,
    )
    best = best_point(points, floor, metric)
    show(sweep_table(points, best, floor))
    if plot:
        sweep_plot(points, output / "tradeoff.png", best, floor)
    if best is None:
        closest = max((p for p in points if p.weight and p.density), key=lambda p: p.retained)
        typer.echo(
            f"no merge retains {100 * floor:g} % of the untouched facts; most, {100 * closest.retained:.1f} %, has "
            f"weight {closest.weight:g} and density {closest.density:g}"
        )
        raise typer.Exit(1)
    recipe = point_recipe(best, base, edited or f"{base}+{adapter}", per_row=per_row, prune_vectors=prune_vectors)
    atomic_write_text(output / "best.yaml", recipe)
    typer.echo(
        f"best: weight {best.weight:g}, density {best.density:g}, retains {100 * best.retained:.1f} %; "
        f"corsa merge {output / 'best.yaml'} OUT"
    )


def _numbers(text: str, option: str) -> list[float]:
    """Numbers separated by spaces or commas."""
    try:
        numbers = [float(part) for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise SettingError(f"{option} is {text!r}: {error}; write numbers, as in '0.5 0.5'") from None
    if not numbers:
        raise SettingError(f"{option} is empty: write numbers, as in '0.5 0.5'")
    return numbers


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
