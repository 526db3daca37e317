"""What a merge costs beside mergekit's own methods, and what scaling and pruning each give back on the testbed.

    python -m benchmarks.merging speed [--rounds 15] [--rounds-all 5] [--folder /tmp/merging]
    python -m benchmarks.merging testbed [--seeds 3 4 5] [--folder runs/merging]

`speed` builds a model of 0.55 billion parameters in bfloat16 from a config, and two edited ones: three matrices changed
(as by R-SFT), and all of them. Every method merges in a process of its own, through mergekit, from disk to disk, with
the same options. Each round runs all methods one after the other, in another order each time, so that the machine's
moods fall on all. Before every run the disk is brought to rest, and a file as large as the output is written
and removed: on a virtual machine whoever is the first to use memory again waits for the host to give it back. Shown are
medians over rounds, of wall-clock and of processor time, and of both relative to the method of the comparison in the
same round; and the peak memory of the process: resident, with the pages of mapped model files, and anonymous, without
them. The models are removed at the end, unless --keep is given.

`testbed` edits facts by R-SFT, sweeps over weights and densities, and shows Table 4 of the paper: merged, without
scaling, without pruning, without either.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.intervals import shown

OURS = "scaled_pruned_delta"
SHARED: Mapping[str, Any] = {"weight": 0.8, "density": 0.2}


@dataclass(frozen=True)
class Run:
    """A method on an edited model; times are compared with those of ``beside``."""

    method: str
    edited: str
    parameters: Mapping[str, Any]
    beside: str | None = None

    @property
    def name(self) -> str:
        return f"{self.edited}/{self.method}"


RUNS = (
    Run("passthrough", "three", {}),
    Run("task_arithmetic", "three", {"weight": 0.8}, "passthrough"),
    Run(OURS, "three", SHARED, "passthrough"),
    Run("task_arithmetic", "all", {"weight": 0.8}, "ties"),
    Run("ties", "all", SHARED),
    Run(OURS, "all", SHARED, "ties"),
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    speed = commands.add_parser("speed")
    speed.add_argument("--rounds", type=int, default=15, help="with three matrices changed  [default: 15]")
    speed.add_argument("--rounds-all", type=int, default=5, help="with all of them changed  [default: 5]")
    speed.add_argument("--folder", type=Path, default=Path("/tmp/merging"))
    speed.add_argument("--hidden", type=int, default=1536)
    speed.add_argument("--layers", type=int, default=16)
    speed.add_argument("--vocabulary", type=int, default=32000)
    speed.add_argument("--device", default="cpu")
    speed.add_argument("--changed", choices=["three", "all"], help="one of the two comparisons  [default: both]")
    speed.add_argument("--keep", action="store_true", help="keep the models for the next time")
    testbed = commands.add_parser("testbed")
    testbed.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    testbed.add_argument("--edits", type=int, default=50)
    testbed.add_argument("--layer", type=int, default=1)
    testbed.add_argument("--learning-rate", type=float, default=5e-4)
    testbed.add_argument("--folder", type=Path, default=Path("runs/merging"))
    worker = commands.add_parser("worker")
    worker.add_argument("--recipe", required=True)
    worker.add_argument("--out", type=Path, required=True)
    worker.add_argument("--device", default="cpu")
    arguments = parser.parse_args(argv)
    {"speed": _speed, "testbed": _testbed, "worker": _worker}[arguments.command](arguments)


def _speed(arguments: argparse.Namespace) -> None:
    folder: Path = arguments.folder
    models = folder / "models"
    parameters = _build(models, arguments.hidden, arguments.layers, arguments.vocabulary)
    size = sum(file.stat().st_size for file in (models / "base").iterdir())
    console = Console(width=160)
    table = Table("changed", "method", "seconds", "relative to", "time", "(range)", "processor time", "peak memory, GB",
                  "anonymous")  # fmt: skip
    started = time.perf_counter()
    for changed, rounds in (("three", arguments.rounds), ("all", arguments.rounds_all)):
        if arguments.changed in (None, changed):
            runs = [run for run in RUNS if run.edited == changed]
            _add_rows(table, runs, _measure(runs, rounds, folder, arguments.device, size), changed)
    console.print(
        f"{parameters / 1e6:.0f} M parameters, bfloat16, {arguments.device}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, mergekit {version('mergekit')}; medians over {arguments.rounds} rounds (three) and "
        f"{arguments.rounds_all} (all) in {time.perf_counter() - started:.0f} s; load average {os.getloadavg()[0]:.1f}"
    )
    console.print(table)
    if not arguments.keep:
        shutil.rmtree(models)


def _measure(
    runs: Sequence[Run], rounds: int, folder: Path, device: str, size: int
) -> dict[str, list[dict[str, float]]]:
    """What each run's process answered in every round."""
    workers = {run.name: _start(run, folder, device) for run in runs}
    log = folder / f"speed-{time.strftime('%Y%m%d-%H%M%S')}.jsonl"
    answers: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    try:
        for worker in workers.values():
            _answer(worker)  # imported and ready
        for number in range(rounds):
            names = list(workers)
            for name in random.Random(number).sample(names, len(names)):
                _settle(folder / "scratch", size)
                worker = workers[name]
                assert worker.stdin is not None
                worker.stdin.write("go\n")
                worker.stdin.flush()
                answers[name].append(_answer(worker))
                with open(log, "a") as stream:
                    stream.write(json.dumps({"round": number, "run": name, **answers[name][-1]}) + "\n")
            told = ", ".join(f"{name} {answers[name][-1]['seconds']:.2f} s" for name in names)
            Console(width=160).print(f"round {number + 1} of {rounds}: {told}")
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    return answers


def _settle(scratch: Path, size: int) -> None:
    os.sync()
    block = bytes(2**22)
    with open(scratch, "wb") as file:
        for _ in range(size // len(block) + 1):
            file.write(block)
    scratch.unlink()


def _add_rows(table: Table, runs: Sequence[Run], answers: Mapping[str, list[dict[str, float]]], changed: str) -> None:
    for run in runs:
        mine, theirs = answers[run.name], answers[f"{run.edited}/{run.beside or run.method}"]
        time_ratios, processor_ratios = (
            [one[key] / other[key] for one, other in zip(mine, theirs, strict=True)]
            for key in ("seconds", "processor_seconds")
        )
        table.add_row(
            changed,
            run.method,
            f"{statistics.median(one['seconds'] for one in mine):.2f}",
            run.beside or "",
            f"{statistics.median(time_ratios):.2f}",
            f"{min(time_ratios):.2f} to {max(time_ratios):.2f}" if run.beside else "",
            f"{statistics.median(processor_ratios):.2f}",
            f"{max(one['peak_gb'] for one in mine):.2f}",
            f"{max(one['peak_anonymous_gb'] for one in mine):.2f}",
        )


def _build(folder: Path, hidden: int, layers: int, vocabulary: int) -> int:
    """Save the base and the edited models, unless they are there; the number of parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = max(1, hidden // 128)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=hidden * 8 // 3, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, tie_word_embeddings=False, dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    trained = [f"model.layers.{min(5, layers - 1)}.mlp.{name}_proj.weight" for name in ("gate", "up", "down")]
    if not (folder / "all" / "config.json").exists():
        model.save_pretrained(folder / "base")
        for name in ("three", "all"):
            with torch.no_grad():
                for key, parameter in model.named_parameters():
                    # on top of the three of before: the other models are not needed any more
                    if name == "all" or key in trained:
                        parameter.add_(torch.randn_like(parameter), alpha=2e-3)
            model.save_pretrained(folder / name)
    return sum(parameter.numel() for parameter in model.parameters())


def _start(run: Run, folder: Path, device: str) -> subprocess.Popen[str]:
    models = folder / "models"
    recipe: dict[str, Any] = {
        "merge_method": run.method,
        "models": [{"model": str(models / run.edited), "parameters": dict(run.parameters)}],
    }
    if run.method != "passthrough":
        recipe["base_model"] = str(models / "base")
    out = folder / "out" / run.name.replace("/", "-")
    command = [sys.executable, "-m", "benchmarks.merging", "worker", "--device", device]
    command += ["--recipe", json.dumps(recipe), "--out", str(out)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _answer(worker: subprocess.Popen[str]) -> dict[str, Any]:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError("a merge failed: see above")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _worker(arguments: argparse.Namespace) -> None:
    """Merge once for every line of input, and tell the seconds and the peak memory so far."""
    from mergekit.config import MergeConfiguration
    from mergekit.io.tasks import LoaderCache
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    import mergekit_ext

    mergekit_ext.register()
    options = MergeOptions(quiet=True, write_model_card=False, copy_tokenizer=False, device=arguments.device)
    config = MergeConfiguration.model_validate(json.loads(arguments.recipe))
    anonymous = _AnonymousPeak()
    print(json.dumps({"ready": True}), flush=True)  # noqa: T201
    for _ in sys.stdin:
        shutil.rmtree(arguments.out, ignore_errors=True)
        LoaderCache().loaders.clear()
        gc.collect()
        start, processor_start = time.perf_counter(), time.process_time()
        run_merge(config.model_copy(deep=True), str(arguments.out), options)
        seconds, processor_seconds = time.perf_counter() - start, time.process_time() - processor_start
        shutil.rmtree(arguments.out)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        answer = {"seconds": seconds, "processor_seconds": processor_seconds}
        answer |= {"peak_gb": peak / 1e9, "peak_anonymous_gb": anonymous.peak / 1e9}
        print(json.dumps(answer), flush=True)  # noqa: T201


class _AnonymousPeak:
    """The largest anonymous resident memory of this process, looked at every 10 ms."""

    def __init__(self) -> None:
        self.peak = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    self.peak = max(self.peak, int(line.split()[1]) * 1024)
            time.sleep(0.01)


WEIGHTS = (0.4, 0.6, 0.8, 1.0)
DENSITIES = (0.1, 0.2, 0.5, 1.0)

TABLE_4 = {
    "base": (0.0, 0.0),
    "R-SFT, not merged": (1.0, 1.0),
    "without scaling": (1.0, 0.2),
    "without pruning": (0.8, 1.0),
    "merged": (0.8, 0.2),
}


def _testbed(arguments: argparse.Namespace) -> None:
    from corsa_plugins.bench.merge_sweep import SweepGrid, SweepPoint, best_point, sweep, sweep_table
    from corsa_plugins.report.sweep_plot import sweep_plot
    from corsa_plugins.rsft import RSFTSettings, rsft
    from corsa_plugins.testbed import load_testbed

    console = Console(width=150)
    bed = load_testbed()
    by_seed: list[dict[tuple[float, float], SweepPoint]] = []
    for seed in arguments.seeds:
        plan = bed.world.edit_rounds(n_rounds=1, size=arguments.edits, seed=seed, untouched=300)
        base, edited = load_testbed().model, load_testbed().model
        settings = RSFTSettings(layer=arguments.layer, learning_rate=arguments.learning_rate, seed=seed)
        rsft(edited, bed.tokenizer, plan.rounds[0], settings)
        folder = arguments.folder / f"{arguments.edits}-edits-layer-{arguments.layer}-seed-{seed}"
        points = sweep(
            base, edited, bed.tokenizer, plan.rounds[0], plan.untouched, grid=SweepGrid(WEIGHTS, DENSITIES),
            results=folder / "sweep.jsonl", progress=False,
        )  # fmt: skip
        best = best_point(points, 0.99)
        console.print(f"seed {seed}", sweep_table(points, best, 0.99))
        sweep_plot(points, folder / "tradeoff.png", best, 0.99)
        by_seed.append({(point.weight, point.density): point for point in points})
    names = [name for name in ("efficacy", "generality", "specificity", "untouched") if name in points[0].metrics]
    title = f"percent, means over seeds {arguments.seeds} ± half of the 95 % interval"
    table = Table("", "weight", "density", *(name.capitalize() for name in names), "Retained", title=title)
    for label, (weight, density) in TABLE_4.items():
        rows = [points[weight, density] for points in by_seed]
        cells = [[row.metrics[name] for row in rows] for name in names] + [[row.retained for row in rows]]
        table.add_row(label, f"{weight:g}", f"{density:g}", *(shown(cell, 100) for cell in cells))
    console.print(table)


if __name__ == "__main__":
    main()
