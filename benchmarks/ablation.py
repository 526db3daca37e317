"""The paper's ablation (papers/corsa.md, Table 9) on the testbed or a pretrained model: what each part of CoRSA adds.

    python -m benchmarks.ablation [--seeds 3 4 5] [--output runs/ablation]
    python -m benchmarks.ablation --atlas FOLDER --size 60 --untouched 100

Two rounds of edits on one adapter, for every method with the same adapter, data, learning rate, epochs and order; on
what `corsa atlas` found a model to know, with the preset `careful`. A seed decides which facts are edited to what, the
adapter's initial values, and the order of the data. Results are appended to `results.jsonl` as they come; a stopped run
goes on where it was, and several may share a folder.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from benchmarks.intervals import shown
from benchmarks.rows import append_row, read_rows
from corsa_plugins.bench.protocols import run_protocol
from corsa_plugins.bench.protocols.plan import folder_name
from corsa_plugins.demo.processes import News, side_by_side
from corsa_plugins.demo.worlds import AtlasWorld, Rounds, TestbedWorld, World
from corsa_plugins.drawing import new_figure, write_figure
from corsa_plugins.methods.registry import method_spec
from trl_ext.methods.lora import LORA_SFT, LoraMethod
from trl_ext.methods.settings import adapter_settings

ABLATION: dict[str, Mapping[str, Any]] = {
    "LoRA SFT": LORA_SFT,
    "+ DPO": {"sam_rho": 0.0, "pcgrad": False},
    "+ DPO + SAM": {"pcgrad": False},
    "+ DPO + SAM + PCGrad (CoRSA)": {},
    "CoRSA without SAM": {"sam_rho": 0.0},
    "CoRSA without DPO": {"dpo_weight": 0.0},
}
"""CoRSA built up and taken apart: what each variant changes in `CoRSAConfig`."""

COLUMNS = {
    "efficacy": "efficacy",
    "generality": "generality",
    "retention": "old answers retained",
    "neighbours": "neighbours",
    "untouched": "untouched facts",
    "second generality": "generality of round 2",
    "later generality": "generality of round 1 after round 2",
    "forgetting": "forgetting of round 1",
    "later retention": "old answers of round 1 after round 2",
    "later untouched": "untouched facts after round 2",
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--only", nargs="+", choices=list(ABLATION), default=list(ABLATION), help="these variants")
    parser.add_argument("--atlas", type=Path, help="a folder of corsa atlas, in place of the testbed")
    parser.add_argument("--size", type=int, default=100, help="edits in a round")
    parser.add_argument("--untouched", type=int, default=500, help="facts to watch, at most")
    parser.add_argument("--workers", type=int, help="processes at a time; by default one for each core")
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--plot", type=Path, help="draw the table as a picture (needs matplotlib)")
    arguments = parser.parse_args(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "results.jsonl"
    console = Console()
    world: World = AtlasWorld(arguments.atlas) if arguments.atlas else TestbedWorld()
    done = {(row["method"], row["seed"]) for row in read_rows(path)}
    work = {
        f"{name}, seed {seed}": partial(
            _run, name, Rounds(arguments.size, seed, arguments.untouched), world, arguments.output
        )
        for seed in arguments.seeds
        for name in arguments.only
        if (name, seed) not in done
    }
    with Progress(console=console) as progress:
        bars = {name: progress.add_task(name, total=1.0) for name in work}

        def report(name: str, share: float, _: str) -> None:
            progress.update(bars[name], completed=share)

        for _, row in side_by_side(work, workers=arguments.workers, report=report):
            append_row(path, row)
    rows = [row for row in read_rows(path) if row["seed"] in arguments.seeds]
    wide = console if console.is_terminal else Console(width=200)
    wide.print(table(rows, f"{world.model}, two rounds of {arguments.size} edits"))
    if arguments.plot:
        plot(rows, arguments.plot)


def _run(name: str, rounds: Rounds, world: World, output: Path, news: News) -> dict[str, float | str | int]:
    """One variant and seed: shares in [0, 1], and seconds of training."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the frameworks, about each other
    disable_progress_bar()
    model, tokenizer = world.load()
    settings = adapter_settings(world.options(method_spec("corsa"))["settings"])
    result = run_protocol(
        LoraMethod(name, ABLATION[name], settings),
        world.plan(rounds),
        model,
        tokenizer,
        output / f"seed-{rounds.seed}" / folder_name(name),
        seed=rounds.seed,
        progress=news,
        before=output / f"seed-{rounds.seed}" / "before",
    )
    one, two = result.summary().updates
    return {
        "method": name,
        "seed": rounds.seed,
        "efficacy": one.right_after["efficacy"].mean,
        "generality": one.right_after["generality"].mean,
        "retention": one.right_after["old_retention"].mean,
        "neighbours": one.right_after["specificity"].mean,
        "untouched": one.untouched["untouched"].mean,
        "second generality": two.right_after["generality"].mean,
        "later generality": one.at_the_end["generality"].mean,
        "forgetting": one.later["forgetting"].mean,
        "later retention": one.at_the_end["old_retention"].mean,
        "later untouched": two.untouched["untouched"].mean,
        "seconds": sum(result.seconds),
    }


def table(rows: Sequence[dict[str, float | str]], what: str) -> Table:
    """A row for each method: the mean over seeds with the half-width of its 95 % interval, in percent."""
    seeds = sorted({row["seed"] for row in rows})
    versions = {name: version(name) for name in ("torch", "transformers", "trl", "peft")}
    drawn = Table(
        title=f"{what}, seeds {seeds}; {', '.join(' '.join(item) for item in versions.items())}; one CPU thread each",
        title_style="",
    )
    drawn.add_column("percent, mean ± 95 % over seeds")
    for heading in COLUMNS.values():
        drawn.add_column(heading, justify="right")
    for name in ABLATION:
        of_method = [row for row in rows if row["method"] == name]
        if of_method:
            drawn.add_row(name, *(shown([float(row[key]) for row in of_method], 100) for key in COLUMNS))
    return drawn


def plot(rows: Sequence[dict[str, float | str]], path: Path) -> None:
    """Bars of the mean over seeds, each seed a dot, readable without colour."""
    shown = {"generality": "up", "retention": "down", "untouched": "up", "later generality": "up"}
    names = [name for name in ABLATION if any(row["method"] == name for row in rows)]
    figure = new_figure(11, 3.2, layout="tight")
    panels: Any = figure.subplots(1, len(shown), sharey=True)
    for panel, (key, better) in zip(panels, shown.items(), strict=True):
        for position, name in enumerate(reversed(names)):
            values = [100 * float(row[key]) for row in rows if row["method"] == name]
            full = name.endswith("(CoRSA)")
            panel.barh(position, statistics.mean(values), color="#1f5f8b" if full else "#c9d3da", edgecolor="#33444f")
            panel.plot(values, [position] * len(values), "o", color="#e07b39", markersize=4, markeredgecolor="#333333")
        panel.set_title(f"{COLUMNS[key]}\n({'more' if better == 'up' else 'less'} is better)", fontsize=9)
        panel.set_xlim(0, 100)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(names)), list(reversed(names)))
    figure.supxlabel("percent; bars are means, dots are seeds", fontsize=8)
    write_figure(figure, path, dpi=110)


if __name__ == "__main__":
    main()
