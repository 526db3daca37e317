"""What is left of sharpness-aware minimisation when it comes late, or in some steps only: quality against cost.

    python -m benchmarks.schedule [--seeds 3 4 5] [--edits 100] [--epochs 28] [--output runs/schedule] [--plot FILE.png]

One round of edits on the testbed by CoRSA, with every schedule the same edits, adapter, order and steps. The
cost is counted, not timed: evaluations of both gradients a step. Results go to `results.jsonl` as they come; a
stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from benchmarks.intervals import shown
from benchmarks.rows import append_row, read_rows
from corsa_plugins.bench.protocols import run_protocol, temporal_stream
from corsa_plugins.corsa import CorsaSettings
from corsa_plugins.drawing import new_figure, write_figure
from corsa_plugins.testbed import load_testbed
from trl_ext.methods.lora import LoraMethod
from trl_ext.methods.settings import adapter_settings

SCHEDULES: dict[str, Mapping[str, Any]] = {
    "every step (Algorithm 1)": {},
    "the last half": {"sam_start": 0.5},
    "the last quarter": {"sam_start": 0.75},
    "every second step": {"sam_interval": 2},
    "every fourth step": {"sam_interval": 4},
    "never": {"sam_rho": 0.0},
}
"""What each changes in `CoRSAConfig`."""

COLUMNS = {
    "efficacy": "efficacy",
    "generality": "generality",
    "retention": "old answers retained",
    "untouched": "untouched facts",
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=28)
    parser.add_argument("--only", nargs="+", choices=SCHEDULES, default=list(SCHEDULES), help="by default all")
    parser.add_argument("--output", type=Path, default=Path("runs/schedule"))
    parser.add_argument("--plot", type=Path, help="draw generality against cost")
    arguments = parser.parse_args(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "results.jsonl"
    asked = {"edits": arguments.edits, "epochs": arguments.epochs}
    done = {(row["schedule"], row["seed"]) for row in read_rows(path) if asked.items() <= row.items()}
    for seed in arguments.seeds:
        for name in arguments.only:
            if (name, seed) not in done:
                append_row(path, {"schedule": name, "seed": seed, **asked, **_run(name, seed, **asked)})
    rows = [row for row in read_rows(path) if row["seed"] in arguments.seeds and asked.items() <= row.items()]
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table(rows))
    if arguments.plot:
        plot(rows, arguments.plot)


def looks(name: str) -> float:
    """Evaluations of both gradients a step, over a long training."""
    return CorsaSettings(**SCHEDULES[name]).looks(1000)


def _run(name: str, seed: int, edits: int, epochs: int) -> dict[str, float]:
    """One schedule and seed: shares in [0, 1]."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the frameworks, about each other
    disable_progress_bar()
    testbed = load_testbed()
    plan = testbed.world.edit_rounds(n_rounds=1, size=edits, seed=seed, untouched=300)
    settings = adapter_settings("testbed")
    settings = replace(settings, training={**settings.training, "num_train_epochs": epochs}, history_looks=0)
    with tempfile.TemporaryDirectory() as folder:
        result = run_protocol(
            LoraMethod(name, SCHEDULES[name], settings),
            temporal_stream(plan.rounds, untouched=plan.untouched),
            testbed.model,
            testbed.tokenizer,
            Path(folder) / "run",
            seed=seed,
            progress=False,
        )
        (update,) = result.summary().updates
    return {
        "efficacy": update.right_after["efficacy"].mean,
        "generality": update.right_after["generality"].mean,
        "retention": update.right_after["old_retention"].mean,
        "untouched": update.untouched["untouched"].mean,
        "seconds": sum(result.seconds),
    }


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """A row for each schedule, in percent, and what it gains on none at all, paired by seed, in points."""
    seeds = sorted({row["seed"] for row in rows})
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl", "peft"))
    drawn = Table(title=f"Testbed, CoRSA, seeds {seeds}; {versions}; percent, mean ± 95 % over seeds", title_style="")
    for heading in ("SAM in", "looks a step", *COLUMNS.values(), "generality minus Algorithm 1's"):
        drawn.add_column(heading, justify="left" if heading == "SAM in" else "right")
    full = {row["seed"]: row["generality"] for row in rows if not SCHEDULES[row["schedule"]]}
    for name in SCHEDULES:
        of_schedule = [row for row in rows if row["schedule"] == name]
        if not of_schedule:
            continue
        paired = [row["generality"] - full[row["seed"]] for row in of_schedule if row["seed"] in full]
        drawn.add_row(
            name,
            f"{looks(name):.2f}",
            *(shown([float(row[key]) for row in of_schedule], 100) for key in COLUMNS),
            shown(paired, 100) if paired else "",
        )
    return drawn


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Generality over looks a step; a dot for each schedule's mean, small ones for seeds."""
    figure = new_figure(6, 3.6, layout="tight")
    panel: Any = figure.subplots()
    for name in SCHEDULES:
        values = [100 * float(row["generality"]) for row in rows if row["schedule"] == name]
        if values:
            panel.plot([looks(name)] * len(values), values, ".", color="#9aa7b0", markersize=4)
            panel.plot(looks(name), statistics.mean(values), "o", color="#1f5f8b")
            panel.annotate(
                name, (looks(name), statistics.mean(values)), fontsize=7, xytext=(5, 3), textcoords="offset points"
            )
    panel.set_xlabel("evaluations of both gradients a step")
    panel.set_ylabel("generality, percent")
    panel.spines[["top", "right"]].set_visible(False)
    write_figure(figure, path, dpi=110)


if __name__ == "__main__":
    main()
