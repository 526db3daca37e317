"""Forgetting over the share of the data that a later update uses, on the testbed (CoRSA paper, 5.1 and Figure 3).

    python -m benchmarks.forgetting [--seeds 3 4 5] [--methods lora-sft corsa alphaedit+ rsft-merged]

Round 1 changes 100 facts; round 2 a share of another 100, on top. Forgetting is the generality of round 1 lost from
right after it to after round 2, and the share of untouched facts lost over the same time. Round 1 is made once for
each method and seed (`corsa_plugins.bench.protocols.shares`). The methods have the testbed's own settings. Results are
appended to `results.jsonl` as they come; a stopped benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from benchmarks.intervals import shown
from benchmarks.rows import append_row, read_rows
from corsa_plugins.alphaedit import collect_statistics
from corsa_plugins.bench.protocols import Method, UpdatePlan, UpdateSet
from corsa_plugins.bench.protocols.plan import method_folder
from corsa_plugins.bench.protocols.shares import forgetting_points, run_shares
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.demo.run import demo_methods
from corsa_plugins.methods.registry import method_spec
from corsa_plugins.methods.spec import TESTBED
from corsa_plugins.testbed import Testbed, load_testbed, texts_of_testbed

METHODS = ("lora-sft", "corsa", "alphaedit+", "rsft-merged")
SHARES = (0.25, 0.5, 0.75, 1.0)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(demo_methods()))
    parser.add_argument("--size", type=int, default=100, help="edits in a round")
    parser.add_argument("--untouched", type=int, default=300)
    parser.add_argument("--output", type=Path, default=Path("runs/forgetting"))
    arguments = parser.parse_args(argv)
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the frameworks, about each other
    logging.getLogger("corsa_plugins").setLevel(logging.ERROR)  # what was not edited is in the generality
    disable_progress_bar()
    torch.set_num_threads(1)  # more do nothing for a model of this size
    console = Console()
    path = arguments.output / "results.jsonl"
    arguments.output.mkdir(parents=True, exist_ok=True)
    bed = load_testbed()
    methods: dict[str, Method] = {}
    for seed in arguments.seeds:
        for name in arguments.methods:
            key = {"method": name, "seed": seed, "size": arguments.size}
            if any(row.items() >= key.items() for row in read_rows(path)):
                continue
            if name not in methods:
                methods[name] = _method(name, bed)
            row = {**key, **measure(methods[name], bed, seed, arguments.size, arguments.untouched, arguments.output)}
            append_row(path, row)
            console.print(f"{row['title']}, seed {seed}: {_line(row)}", soft_wrap=True)
    rows = [row for row in read_rows(path) if row["seed"] in arguments.seeds and row["method"] in arguments.methods]
    wide = console if console.is_terminal else Console(width=200)
    wide.print(table([row for row in rows if row["size"] == arguments.size]))


def measure(method: Method, bed: Testbed, seed: int, size: int, untouched: int, output: Path) -> dict[str, Any]:
    """One method and seed, over all shares."""
    start = time.perf_counter()
    edits = bed.world.edit_rounds(n_rounds=2, size=size, seed=seed, untouched=untouched)
    sets = tuple(UpdateSet(f"round {n}", tuple(map(_bare, one))) for n, one in enumerate(edits.rounds, start=1))
    plan = UpdatePlan("two rounds", sets, ((), (1,), (1, 2)), tuple(edits.untouched))
    folder = output / f"{method_folder(method.name)}-{seed}-{size}"
    results = run_shares(method, plan, bed.model, bed.tokenizer, folder, SHARES, seed=seed, progress=False)
    whole = results[1.0].summary()
    row = {
        "title": method.name,
        "round 1": whole.updates[0].right_after["generality"].mean,
        "round 2": whole.updates[1].right_after["generality"].mean,
        "forgetting": [point.forgetting for point in forgetting_points(results)],
        "untouched": [point.forgetting for point in forgetting_points(results, untouched=True)],
        "seconds": time.perf_counter() - start,
    }
    shutil.rmtree(folder)  # adapters of every share
    return row


def _bare(request: EditRequest) -> EditRequest:
    """Without the neighbours, which nothing here asks."""
    return request.model_copy(update={"neighborhood": ()})


def _method(name: str, bed: Testbed) -> Method:
    spec = method_spec(name)
    settings = spec.settings_class().load(TESTBED)
    if hasattr(settings, "history_looks"):
        settings = replace(settings, history_looks=0)
    if not spec.needs_statistics:
        return spec(settings=settings)
    texts = texts_of_testbed(bed)
    known = collect_statistics(bed.model, bed.tokenizer, texts, settings.layers, n_tokens=60_000, batch_size=64)
    return spec(statistics=known, settings=settings)


def _line(row: dict[str, Any]) -> str:
    forgotten, lost = (" ".join(f"{100 * v:.1f}" for v in row[key]) for key in ("forgetting", "untouched"))
    return f"round 1 {100 * row['round 1']:.1f}, forgetting {forgotten}, untouched lost {lost}, {row['seconds']:.0f} s"


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """A row for each method and kind of fact: the mean over seeds with the half-width of its 95 % interval."""
    seeds = sorted({row["seed"] for row in rows})
    names = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl", "peft"))
    found = Table(title=f"Testbed, seeds {seeds}; {names}", title_style="")
    for heading in ("points, mean ± 95 % over seeds", "generality of round 1", "of round 2"):
        found.add_column(heading, justify="left" if heading.startswith("points") else "right")
    for share in SHARES:
        found.add_column(f"{100 * share:.0f} % of round 2", justify="right")
    found.add_column("s (time)", justify="right")
    for key, what in (("forgetting", "round 1"), ("untouched", "untouched facts")):
        found.add_section()
        for method in dict.fromkeys(row["method"] for row in rows):
            chosen = [row for row in rows if row["method"] == method]
            cells = [shown([row[key][at] for row in chosen], 100) for at in range(len(SHARES))]
            ends = [shown([row[name] for row in chosen], 100) for name in ("round 1", "round 2")]
            seconds = f"{sum(row['seconds'] for row in chosen) / len(chosen):.0f}"
            found.add_row(f"{chosen[0]['title']}: {what} lost", *ends, *cells, seconds)
    return found


if __name__ == "__main__":
    main()
