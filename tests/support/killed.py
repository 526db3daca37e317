"""Runs that are killed at any moment and started again, each by one call in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

PRELOADED = [
    "torch", "transformers", "mergekit.merge", "corsa_plugins.alphaedit.edited", "corsa_plugins.bench.evaluation",
    "mergekit_ext.merging", "tests.support.killed",
]  # fmt: skip


def _quiet() -> None:
    import torch

    os.environ["HF_HUB_OFFLINE"] = os.environ["TQDM_DISABLE"] = "1"
    torch.set_num_threads(1)


def merge(inputs: Path, out: Path) -> None:
    """A merge into ``out/merged``; what is whole is not made again."""
    from mergekit.options import MergeOptions

    from mergekit_ext.merging import merge_recipe

    _quiet()
    if not (out / "merged").exists():
        merge_recipe(inputs / "recipe.yaml", out / "merged", MergeOptions(quiet=True))


def statistics(inputs: Path, out: Path) -> None:
    """Statistics in ``out/stats``, kept after every batch."""
    from corsa_plugins.alphaedit.statistics.collect import collect_statistics
    from corsa_plugins.model.loading import load_model

    _quiet()
    if (out / "stats" / "statistics.json").exists():
        return
    model, tokenizer = load_model(inputs / "model", device="cpu")
    settings = {"n_tokens": 6000, "batch_size": 2, "sample_size": 32, "checkpoint_seconds": 0}
    collect_statistics(model, tokenizer, str(inputs / "text.txt"), (0, 1), out=out / "stats", **settings)


def edit(inputs: Path, out: Path) -> None:
    """A model edited with AlphaEdit+ in ``out/edited``."""
    from corsa_plugins.alphaedit import AlphaEditSettings, KeyStatistics
    from corsa_plugins.alphaedit.edited import change_edits, editor_with, save_edited
    from corsa_plugins.data.reading import read_requests
    from corsa_plugins.model.loading import load_model

    _quiet()
    model, tokenizer = load_model(inputs / "model", device="cpu")
    editor = editor_with(model, tokenizer, KeyStatistics.load(inputs / "stats"), AlphaEditSettings((0, 1)), None)
    save_edited(editor, out / "edited", change_edits(editor, read_requests(inputs / "requests.jsonl")))


def evaluation(inputs: Path, out: Path) -> None:
    """The answers to requests in ``out/results``, kept as they come."""
    from corsa_plugins.bench.evaluation import evaluate, save_evaluation
    from corsa_plugins.data.reading import read_requests
    from corsa_plugins.model.loading import load_model

    _quiet()
    model, tokenizer = load_model(inputs / "model", device="cpu")
    requests = read_requests(inputs / "requests.jsonl")
    settings = {"batch_size": 1, "checkpoint": out / "results.unfinished", "progress": False}
    save_evaluation(evaluate(model, tokenizer, requests, label="killed", **settings), out / "results")


def run(work: Callable[[Path, Path], None], inputs: Path, out: Path, kill_after: float | None = None) -> float:
    """Seconds that the work took, or until it was killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    start = time.monotonic()
    process = context.Process(target=work, args=(inputs, out))
    process.start()
    process.join(kill_after)
    if kill_after is None:
        assert process.exitcode == 0
    elif process.is_alive():
        process.kill()
        process.join()
    return time.monotonic() - start


def moments(seconds: float, count: int, seed: str) -> list[float]:
    """When to kill, at random within a run that takes so long, the same each time."""
    draw = random.Random(seed)
    return [draw.uniform(0, seconds) for _ in range(count)]
