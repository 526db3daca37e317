"""How sharp LoRA SFT and CoRSA leave the adapter: extreme eigenvalues of the loss's and the margin's Hessian.

    python -m benchmarks.curvature [--seeds 3 4 5] [--output runs/curvature]

One round of 100 edits on the testbed by each method, with the same adapter, data, learning rate, epochs and order; the
curvature over the adapter's parameters on those 100 edits, right after it (papers/corsa.md, Eq. 2 and C.1). Results
are appended to `results.jsonl` as they come; a stopped run goes on where it was, and several may share a folder.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.intervals import mean_and_half_width
from benchmarks.rows import append_row, read_rows
from corsa_plugins.bench.curvature import FUNCTIONS, curvature, save_curvature
from corsa_plugins.bench.protocols.plan import folder_name
from corsa_plugins.testbed import load_testbed
from trl_ext.methods import LoraMethod, corsa, lora_sft
from trl_ext.methods.settings import TESTBED_SETTINGS

METHODS = (lora_sft("testbed"), corsa("testbed"))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--size", type=int, default=100, help="edits")
    parser.add_argument("--max-iterations", type=int, default=60)
    parser.add_argument("--tolerance", type=float, default=1e-2)
    parser.add_argument("--output", type=Path, default=Path("runs/curvature"))
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "results.jsonl"
    console = Console()
    setting = {"size": arguments.size, "tolerance": arguments.tolerance, "max_iterations": arguments.max_iterations}
    done = {(row["method"], row["seed"]) for row in _read(path, setting)}
    for seed in arguments.seeds:
        for method in METHODS:
            if (method.name, seed) in done:
                continue
            row = measure(method, seed, arguments.output, **setting)
            append_row(path, row | setting)
            console.print(f"{method.name}, seed {seed}: {row['seconds']:.0f} s")
    wide = console if console.is_terminal else Console(width=200)
    wide.print(table([row for row in _read(path, setting) if row["seed"] in arguments.seeds]))


def measure(
    method: LoraMethod, seed: int, output: Path, *, size: int, tolerance: float, max_iterations: int
) -> dict[str, Any]:
    """One method and seed: train, then measure."""
    started = time.monotonic()
    testbed = load_testbed()
    (requests,) = testbed.world.edit_rounds(n_rounds=1, size=size, seed=seed, untouched=500).rounds
    folder = output / f"seed-{seed}" / folder_name(method.name)
    model: Any = method.start(testbed.model, testbed.tokenizer, seed=seed).train(requests, folder)
    trained = time.monotonic()
    found = curvature(
        model,
        requests,
        testbed.tokenizer,
        batch_size=50,
        tolerance=tolerance,
        max_iterations=max_iterations,
        seed=seed,
    )
    save_curvature(folder / "curvature.json", {f"{method.name}, seed {seed}": found})  # for `corsa report`
    row: dict[str, Any] = {"method": method.name, "seed": seed, "seconds": time.monotonic() - started}
    row["training seconds"] = trained - started
    for name, of in found.items():
        row |= {f"{name} {key}": value for key, value in vars(of).items()}
    return row


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """A row for each method: the mean over seeds with the half-width of its 95 % interval."""
    seeds = sorted({row["seed"] for row in rows})
    names = [f"{name} {version(name)}" for name in ("torch", "transformers", "trl", "peft")]
    settings = ", ".join(f"{k} {v}" for k, v in TESTBED_SETTINGS.items() if not isinstance(v, bool))
    found = Table(title=f"Testbed, one round, seeds {seeds}; {settings}; {', '.join(names)}", title_style="")
    found.add_column("mean ± 95 % over seeds")
    for name in FUNCTIONS:
        for heading in ("|largest|", "top", "value", "iterations"):
            found.add_column(f"{name}: {heading}", justify="right")
    found.add_column("converged", justify="right")
    for method in METHODS:
        own = [row for row in rows if row["method"] == method.name]
        if not own:
            continue
        cells = []
        for name in FUNCTIONS:
            cells.append(_cell([abs(row[f"{name} largest"]) for row in own]))
            cells += [_cell([row[f"{name} {key}"] for row in own]) for key in ("top", "value", "iterations")]
        converged = sum(row[f"{name} converged"] for row in own for name in FUNCTIONS)
        found.add_row(method.name, *cells, f"{converged} of {len(own) * len(FUNCTIONS)}")
    return found


def _cell(values: Sequence[float]) -> str:
    mean, half = mean_and_half_width(values)
    return f"{mean:.4g}" if half is None else f"{mean:.4g} ± {half:.2g}"


def _read(path: Path, setting: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of earlier runs with the same settings."""
    return [row for row in read_rows(path) if all(row.get(name) == value for name, value in setting.items())]


if __name__ == "__main__":
    main()
