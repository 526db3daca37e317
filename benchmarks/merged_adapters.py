"""Adapters of two sets of facts, trained by themselves and merged, on the testbed (CoRSA paper, B.1 and Figure 6).

    python -m benchmarks.merged_adapters [--seeds 3 4 5] [--methods lora-sft f-learning corsa] [--total 1]

Each method trains one adapter on a set of facts and another one, from the same base, on another set; they are added
with the weights w and total - w. Forgetting is the generality of each adapter alone minus the merged one's, over the
facts of both. The methods have the testbed's own settings. Results are appended to `results.jsonl` as they come, and
`merging.json` in the folder of a method and seed is drawn by `corsa report`; a stopped benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from benchmarks.intervals import shown
from benchmarks.rows import append_row, read_rows
from corsa_plugins.bench.merge_adapters import merge_over_weights, save_points
from corsa_plugins.methods.registry import method_spec
from corsa_plugins.methods.spec import TESTBED
from corsa_plugins.testbed import Testbed, load_testbed
from trl_ext.methods.session import ADAPTER

METHODS = ("lora-sft", "f-learning", "corsa")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--size", type=int, default=50, help="facts in a set")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75, 1.0])
    parser.add_argument("--total", type=float, nargs="+", default=[1.0, 2.0], help="sums of the two weights")
    parser.add_argument("--output", type=Path, default=Path("runs/merged-adapters"))
    arguments = parser.parse_args(argv)
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the frameworks, about each other
    logging.getLogger("corsa_plugins").setLevel(logging.ERROR)
    disable_progress_bar()
    torch.set_num_threads(1)  # more do nothing for a model of this size
    console = Console()
    path = arguments.output / "results.jsonl"
    arguments.output.mkdir(parents=True, exist_ok=True)
    bed = load_testbed()
    for seed in arguments.seeds:
        for name in arguments.methods:
            key = {"method": name, "seed": seed, "size": arguments.size}
            if not any(row.items() >= key.items() for row in read_rows(path)):
                points = measure(name, bed, seed, arguments)
                append_row(path, {**key, "points": points})
                console.print(f"{name}, seed {seed}: {points}", soft_wrap=True)
    wide = console if console.is_terminal else Console(width=200)
    wide.print(table([row for row in read_rows(path) if row["size"] == arguments.size]))


def measure(name: str, bed: Testbed, seed: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One method and seed: two trainings, and all weights."""
    start = time.perf_counter()
    sets = bed.world.edit_rounds(n_rounds=2, size=arguments.size, seed=seed).rounds
    method = method_spec(name)(settings=TESTBED)
    folder = arguments.output / f"{name}-{seed}"
    adapters = []
    for which, requests in zip("ab", sets, strict=True):
        session = method.start(bed.model, bed.tokenizer, seed=seed)
        try:
            session.update(requests, folder / which)
        finally:
            session.close()
        adapters.append(folder / which / ADAPTER)
    bed.model.save_pretrained(arguments.output / "model")
    bed.tokenizer.save_pretrained(arguments.output / "model")
    rows = []
    for total in arguments.total:
        points = merge_over_weights(
            adapters, sets, arguments.weights, total=total, method=method.name,
            model=str(arguments.output / "model"), progress=False,
        )  # fmt: skip
        save_points(points, folder / f"total-{total:g}")
        rows += [
            {"total": total, "weight": point.weights[0] / total, "metric": point.metric, "first": point.first.mean,
             "second": point.second.mean, "union": point.union.mean, "seconds": time.perf_counter() - start}
            for point in points
        ]  # fmt: skip
    return rows


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Forgetting on both sets, points: the mean over seeds for each method, sum of weights and first part."""
    drawn = Table(title="forgetting by merging, generality of both sets, points; mean over seeds")
    every = {(point["total"], point["weight"]) for row in rows for point in row["points"]}
    drawn.add_column("method")
    for total, weight in sorted(every):
        drawn.add_column(f"{total * weight:g} + {total * (1 - weight):g}", justify="right")
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for at in sorted(every):
            values = [
                100 * point["union"]
                for row in rows
                for point in row["points"]
                if row["method"] == method and (point["total"], point["weight"]) == at
            ]
            cells.append(shown(values) if values else "")
        drawn.add_row(method, *cells)
    return drawn


if __name__ == "__main__":
    main()
