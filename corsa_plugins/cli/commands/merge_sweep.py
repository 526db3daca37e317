"""``corsa merge-sweep``: which weight and density of a merge keep the edits and everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from corsa_plugins.cli import options
from corsa_plugins.cli.terminal import show
from corsa_plugins.cli.values import parse_numbers, place
from corsa_plugins.errors import SettingError
from corsa_plugins.paths import user_path

__all__ = ["merge_sweep"]


def merge_sweep(
    base: Annotated[str, typer.Option(help="The model before the edits: a folder, or a name on the Hub.")],
    requests: options.Requests,
    untouched: options.Untouched,
    output: options.Output,
    edited: options.Edited = None,
    adapter: options.Adapter = None,
    weights: options.Weights = "0.2 0.4 0.6 0.8 1",
    densities: Annotated[str, typer.Option(help="Densities to try, in one argument.")] = "0.05 0.1 0.2 0.5 1",
    floor: Annotated[float, typer.Option(help="Share of the untouched facts that the best merge must retain.")] = 0.99,
    metric: Annotated[
        str | None, typer.Option(help="What the best merge has most of.  [default: generality, else efficacy]")
    ] = None,
    per_row: Annotated[bool, typer.Option("--per-row", help="Prune every row, not the whole matrix.")] = False,
    prune_vectors: Annotated[bool, typer.Option(help="Prune norms and biases too.")] = True,
    plot: Annotated[bool, typer.Option(help="Draw the trade-off (needs the extra eval).")] = True,
    batch_size: options.BatchSize = 64,
    max_new_tokens: options.MaxNewTokens = None,
    chat_template: options.ChatTemplate = False,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    max_memory: options.MaxMemory = None,
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Try weights and densities of a merge in memory: what of the edits stays, and what of everything else.

    Each pair is measured on the requests and on the untouched facts. Points are written as they come; the same
    command again measures only what is missing. The best point has the most generality (or --metric) among those that
    retain --floor of the untouched facts that the base answers right. What was edited is --edited, or the base with
    --adapter.

    \b
    EXAMPLES
      corsa merge-sweep --base M --edited M-edited --requests facts.jsonl --untouched others.jsonl --output sweep
      corsa merge-sweep --base M --adapter runs/facts --requests facts.jsonl --untouched others.jsonl \\
          --weights '0.4 0.8' --densities '0.1 0.2 1' --floor 0.95 --output sweep
      corsa merge sweep/best.yaml merged

    \b
    FILES
      OUTPUT/sweep.jsonl    a line per merge, after one on what was swept over
      OUTPUT/tradeoff.png   the plot
      OUTPUT/best.yaml      the mergekit recipe of the best merge

    \b
    EXIT CODES
      0 done; 1 no merge meets the floor; 2 wrong usage or an unusable model or file; 130 interrupted
    """
    import yaml
    from transformers.utils.logging import disable_progress_bar

    from corsa_plugins.alphaedit.edited import whole_model
    from corsa_plugins.bench.merge_sweep import SweepGrid, best_point, sweep, sweep_table
    from corsa_plugins.data.reading import read_probes, read_requests
    from corsa_plugins.files import atomic_write_text
    from corsa_plugins.manifest import versions
    from corsa_plugins.merging.recipe import delta_recipe
    from corsa_plugins.model.loading import load_model
    from corsa_plugins.report.sweep_plot import sweep_plot

    if quiet:
        disable_progress_bar()
    if (edited is None) == (adapter is None):
        raise SettingError("what was edited? Give --edited or --adapter, one of them")
    if not 0 <= floor <= 1:
        raise SettingError(f"--floor is {floor}: it must lie between 0 and 1, for instance 0.99")
    scales, shares = (parse_numbers(text, name) for text, name in ((weights, "--weights"), (densities, "--densities")))
    grid = SweepGrid(scales, shares, per_row, prune_vectors)
    edits, facts = read_requests(requests), read_probes(untouched)
    merged: Any = whole_model(edited) if edited else base
    where = place(device, device_map, max_memory)
    before, tokenizer = load_model(base, device=where, dtype=dtype)
    after: Any = load_model(merged, adapter, device=where, dtype=dtype)[0]
    if adapter:
        after = after.merge_and_unload()
    points = sweep(
        before,
        after,
        tokenizer,
        edits,
        facts,
        grid=grid,
        results=output / "sweep.jsonl",
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
    recipe = delta_recipe(
        _as_folder(base),
        _as_folder(merged),
        best.weight,
        best.density,
        adapter=_as_folder(adapter) if adapter else None,
        per_row=per_row,
        prune_vectors=prune_vectors,
    )
    made = ", ".join(" ".join(item) for item in versions().items())
    atomic_write_text(output / "best.yaml", f"# {made}\n{yaml.safe_dump(recipe, sort_keys=False)}")
    typer.echo(
        f"best: weight {best.weight:g}, density {best.density:g}, retains {100 * best.retained:.1f} %; "
        f"corsa merge {output / 'best.yaml'} OUT"
    )


def _as_folder(model: str | Path) -> str | Path:
    """A folder as a path, whatever is in its name; what is none as the text it is."""
    return user_path(model) if user_path(model).is_dir() else model
