"""Runs that are killed at any moment and started again, each by one call in a process of its own."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.forks import forks

ROWS = [
    {"prompt": f"The capital of {land} is", "chosen": f" {new}", "rejected": f" {old}"}
    for land, new, old in (("Avaria", "Oslo", "Rome"), ("Corvia", "Madrid", "Paris"), ("Elland", "Paris", "Oslo"))
]


class Run(NamedTuple):
    """What became of a run.

    Attributes:
        seconds: That it took, or lived.
        killed: Whether the kill hit a living process: one that came too late shows nothing.
    """

    seconds: float
    killed: bool


def _quiet() -> None:
    import torch

    os.environ["HF_HUB_OFFLINE"] = os.environ["TQDM_DISABLE"] = "1"
    torch.set_num_threads(1)


def _loaded(inputs: Path, name: str = "model") -> tuple[Any, Any]:
    from corsa_plugins.model.loading import load_model

    _quiet()
    return load_model(inputs / name, device="cpu")


def merge(inputs: Path, out: Path) -> None:
    """A merge into ``out/merged``; what is whole is not made again."""
    from mergekit.options import MergeOptions

    from mergekit_ext.merging import merge_recipe

    _quiet()
    if not (out / "merged").exists():
        merge_recipe(inputs / "recipe.yaml", out / "merged", MergeOptions(quiet=True))


def statistics(inputs: Path, out: Path) -> None:
    """Statistics in ``out/stats``, kept after every batch."""
    from corsa_plugins.alphaedit.statistics.collect import check_folder, collect_statistics
    from corsa_plugins.alphaedit.statistics.layer import StatisticsError

    if (out / "stats" / "statistics.json").exists():
        with suppress(StatisticsError):  # which says that they are finished
            check_folder(out / "stats", fresh=False)
        return
    model, tokenizer = _loaded(inputs)
    settings = {"n_tokens": 6000, "batch_size": 2, "sample_size": 32, "checkpoint_seconds": 0}
    collect_statistics(model, tokenizer, str(inputs / "text.txt"), (0, 1), out=out / "stats", **settings)


def edit(inputs: Path, out: Path) -> None:
    """A model edited with AlphaEdit+ in ``out/edited``."""
    from corsa_plugins.alphaedit import AlphaEditSettings, KeyStatistics
    from corsa_plugins.alphaedit.edited import change_edits, editor_with, save_edited
    from corsa_plugins.data.reading import read_requests

    model, tokenizer = _loaded(inputs)
    editor = editor_with(model, tokenizer, KeyStatistics.load(inputs / "stats"), AlphaEditSettings((0, 1)), None)
    save_edited(editor, out / "edited", change_edits(editor, read_requests(inputs / "requests.jsonl")))


def evaluation(inputs: Path, out: Path) -> None:
    """The answers to requests in ``out/results``, kept as they come."""
    from corsa_plugins.bench.evaluation import evaluate, save_evaluation
    from corsa_plugins.data.reading import read_requests

    model, tokenizer = _loaded(inputs)
    requests = read_requests(inputs / "requests.jsonl")
    settings = {"batch_size": 1, "checkpoint": out / "results.unfinished", "progress": False}
    save_evaluation(evaluate(model, tokenizer, requests, label="killed", **settings), out / "results")


def rsft(inputs: Path, out: Path) -> None:
    """A model that R-SFT has edited, in ``out/edited``."""
    from corsa_plugins.data.reading import read_requests
    from corsa_plugins.methods.edit import save_update
    from corsa_plugins.methods.registry import make_method
    from corsa_plugins.rsft import RSFTSettings

    model, tokenizer = _loaded(inputs)
    method = make_method("rsft", settings=RSFTSettings(layer=1, epochs=2, steps=2, learning_rate=3e-3))
    save_update(method, model, tokenizer, read_requests(inputs / "requests.jsonl"), out / "edited")


def sequential(inputs: Path, out: Path) -> None:
    """Edits one after the other, each asked about after it, in ``out/run``."""
    from corsa_plugins.alphaedit import AlphaEditSettings, KeyStatistics
    from corsa_plugins.bench.protocols import sequential_batches
    from corsa_plugins.data.reading import read_requests
    from corsa_plugins.methods.registry import make_method

    statistics = KeyStatistics.load(inputs / "stats")
    method = make_method("alphaedit+", statistics=statistics, settings=AlphaEditSettings((0, 1)))
    _protocol(inputs, out, method, sequential_batches(read_requests(inputs / "requests.jsonl"), 1))


def protocol(inputs: Path, out: Path) -> None:
    """A stream of two rounds by R-SFT, in ``out/run``."""
    from corsa_plugins.bench.protocols import temporal_stream
    from corsa_plugins.data.reading import read_requests
    from corsa_plugins.methods.registry import make_method
    from corsa_plugins.rsft import RSFTSettings

    first, *others = read_requests(inputs / "requests.jsonl")
    method = make_method("rsft", settings=RSFTSettings(layer=1, epochs=1, steps=2, learning_rate=3e-3))
    _protocol(inputs, out, method, temporal_stream([[first], others]))


def _protocol(inputs: Path, out: Path, method: Any, plan: Any) -> None:
    from corsa_plugins.bench.protocols import run_protocol

    model, tokenizer = _loaded(inputs)
    run_protocol(method, plan, model, tokenizer, out / "run", progress=False, max_new_tokens=4)


def sweep(inputs: Path, out: Path) -> None:
    """Two weights and two densities between two models, in ``out/sweep.jsonl``."""
    from corsa_plugins.bench.merge_sweep import SweepGrid
    from corsa_plugins.bench.merge_sweep import sweep as run_sweep
    from corsa_plugins.data.reading import read_requests
    from corsa_plugins.data.requests import Probe

    (base, tokenizer), (edited, _) = _loaded(inputs), _loaded(inputs, "other")
    untouched = [Probe(prompt="The capital of Italy is", answer="Rome")]
    requests = read_requests(inputs / "requests.jsonl")
    grid, settings = SweepGrid((0.5, 1.0), (0.2, 0.6), False), {"progress": False, "max_new_tokens": 4}
    run_sweep(base, edited, tokenizer, requests, untouched, grid=grid, results=out / "sweep.jsonl", **settings)


def export(inputs: Path, out: Path) -> None:
    """The edits of ``inputs/edited`` as an adapter in ``out/adapter``; what is whole is not made again."""
    from corsa_plugins.adapters.export import export_state
    from corsa_plugins.alphaedit import EditState
    from corsa_plugins.outputs import OutputError

    _quiet()
    whole = (out / "adapter").exists()
    try:
        export_state(EditState.load(inputs / "edited" / "state"), out / "adapter")
    except OutputError:  # it is there already
        if not whole:
            raise


def training(inputs: Path, out: Path) -> None:
    """CoRSA in three steps with a checkpoint after each, in ``out/trained``; on from the newest that is whole."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig

    from trl_ext import CoRSAConfig, CoRSATrainer
    from trl_ext.checkpoints import save_adapter

    model, tokenizer = _loaded(inputs)
    arguments = CoRSAConfig(
        str(out / "trained"), use_cpu=True, bf16=False, report_to="none", disable_tqdm=True,
        gradient_checkpointing=False, per_device_train_batch_size=1, gradient_accumulation_steps=1, max_steps=3,
        learning_rate=1e-2, save_strategy="steps", save_steps=1, optim="adamw_torch",
    )  # fmt: skip
    torch.manual_seed(0)
    trainer = CoRSATrainer(
        model, args=arguments, train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer,
        peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=True)
    save_adapter(trainer, out / "trained")


def demo(inputs: Path, out: Path) -> None:
    """The demo with two edits a round by one method, in ``out/demo``."""
    import io

    from rich.console import Console

    from corsa_plugins.demo.run import Rounds, run_demo

    _quiet()
    run_demo(out / "demo", Rounds(2, untouched=4), methods=["alphaedit+"], console=Console(file=io.StringIO()))


def run(work: Callable[[Path, Path], None], inputs: Path, out: Path, kill_after: float | None = None) -> Run:
    """The work in a process of its own, killed after so many seconds if it is not done by then."""
    start = time.monotonic()
    process = forks().Process(target=work, args=(inputs, out))
    process.start()
    process.join(kill_after)
    killed = process.is_alive()
    if killed:
        process.kill()
        process.join()
        killed = process.exitcode == -signal.SIGKILL  # it may have come to its end between the two
    assert killed or process.exitcode == 0
    return Run(time.monotonic() - start, killed)


def full(kind: str, size: int, inputs: Path, out: Path) -> None:
    """The work where no file can be larger than ``size`` bytes; what it raises, in ``error.txt`` beside ``out``."""
    from corsa_plugins.errors import CorsaError
    from tests.support.disk import no_file_larger_than

    told = "nothing"
    try:
        with no_file_larger_than(size):
            globals()[kind](inputs, out)
    except (CorsaError, OSError) as error:
        told = str(error)
    (out.parent / "error.txt").write_text(told)


def moments(seconds: float, seed: str) -> Iterator[float]:
    """When to kill, at random within a run that takes so long, the same each time; without end."""
    draw = random.Random(seed)
    while True:
        yield draw.uniform(0, seconds)
