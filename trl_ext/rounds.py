"""Updates on the testbed, one after the other on one adapter, as the demo and the benchmarks run them."""

from __future__ import annotations

import multiprocessing
import os
import queue
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback

from corsa_plugins.evaluation import Evaluation, evaluate, save_evaluation
from corsa_plugins.preferences import to_preference_rows
from corsa_plugins.requests import EditRequest
from corsa_plugins.testbed import LoraDefaults, load_testbed
from trl_ext.config import CoRSAConfig
from trl_ext.trainer import CoRSATrainer

__all__ = [
    "ABLATION",
    "CORSA",
    "LORA_SFT",
    "TESTBED_SETTINGS",
    "Job",
    "JobResult",
    "Method",
    "run_jobs",
    "train_update",
]

_DEFAULTS = LoraDefaults()

#: The testbed's own settings, for every method alike. The adapter is `paper_lora_config`, the trainer's default.
TESTBED_SETTINGS: Mapping[str, Any] = {
    "learning_rate": _DEFAULTS.learning_rate,
    "num_train_epochs": _DEFAULTS.epochs,
    "per_device_train_batch_size": _DEFAULTS.batch_size,
    "gradient_accumulation_steps": _DEFAULTS.accumulation,
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
}


@dataclass(frozen=True)
class Method:
    """A way to train an adapter: a name, and what it changes in `CoRSAConfig`."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The name as a folder is named."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.name.lower()).split())


LORA_SFT = Method("LoRA SFT", {"dpo_weight": 0.0, "sam_rho": 0.0})
CORSA = Method("CoRSA")

#: The paper's ablation (Table 9), built up and taken apart.
ABLATION = (
    LORA_SFT,
    Method("+ DPO", {"sam_rho": 0.0, "pcgrad": False}),
    Method("+ DPO + SAM", {"pcgrad": False}),
    Method("+ DPO + SAM + PCGrad (CoRSA)"),
    Method("CoRSA without SAM", {"sam_rho": 0.0}),
    Method("CoRSA without DPO", {"dpo_weight": 0.0}),
)


def train_update(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    method: Method,
    output_dir: Path,
    *,
    seed: int = 0,
    on_step: Callable[[float], None] | None = None,
    settings: Mapping[str, Any] = TESTBED_SETTINGS,
) -> CoRSATrainer:
    """One update: train an adapter on the requests, or the adapter that ``model`` has already.

    Args:
        model: the base model, for a first update; for later ones the ``PeftModel`` of the one before.
        output_dir: gets the adapter.
        seed: of the adapter's initial values and the order of the data.
        on_step: called after each optimiser step with the share of the training that is done, in [0, 1].

    Returns:
        The trainer; its ``model`` is the edited one, and its ``state.log_history`` what was logged.
    """
    config: dict[str, Any] = {"disable_tqdm": True, "report_to": "none", "save_strategy": "no", "logging_steps": 10}
    config |= {**settings, **method.settings, "output_dir": str(output_dir), "seed": seed}
    with quiet():
        trainer = CoRSATrainer(
            model=model,
            args=CoRSAConfig(**config),
            train_dataset=Dataset.from_list(to_preference_rows(requests)),
            processing_class=tokenizer,
            callbacks=[_Progress(on_step)] if on_step is not None else None,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trainer.save_model()
    return trainer


@dataclass(frozen=True)
class Job:
    """Two updates on one adapter by one method.

    Attributes:
        seed: which facts are edited to what, the adapter's initial values, and the order of the data.
        size: edits in a round.
        output: gets the adapter of each round and every evaluation with its records.
    """

    method: Method
    seed: int
    size: int
    output: Path


@dataclass(frozen=True)
class JobResult:
    """What a job did to the testbed.

    Attributes:
        first: round 1 (and the untouched facts) right after round 1.
        first_later: round 1 (and the untouched facts) after round 2.
        second: round 2 right after it.
        seconds: time spent training, both rounds.
    """

    job: Job
    first: Evaluation
    first_later: Evaluation
    second: Evaluation
    seconds: float


Report = Callable[[Job, float, str], None]


def run_jobs(jobs: Sequence[Job], report: Report | None = None) -> Iterator[JobResult]:
    """Run jobs side by side, a process for each core, and yield the results as they come.

    The testbed is so small that a second thread does nothing for it, and a second process halves the time.

    Args:
        report: called in this process with a job, the share of it that is done, and what it is doing.
    """
    context = multiprocessing.get_context("spawn")
    workers = max(1, min(len(jobs), os.cpu_count() or 1))
    with context.Manager() as manager:
        news = manager.Queue()
        with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            running = {pool.submit(_run_job, index, job, news) for index, job in enumerate(jobs)}
            try:
                while running:
                    finished, running = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                    _pass_on(news, jobs, report)
                    for future in finished:
                        yield future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def _pass_on(news: Any, jobs: Sequence[Job], report: Report | None) -> None:
    while True:
        try:
            index, share, doing = news.get_nowait()
        except queue.Empty:
            return
        if report is not None:
            report(jobs[index], share, doing)


_MOMENTS = {"first": "round 1 right after it", "first_later": "round 1 after round 2", "second": "round 2"}


def _run_job(index: int, job: Job, news: Any) -> JobResult:
    """Two updates on one adapter, measured after each."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the frameworks, about each other
    transformers.utils.logging.disable_progress_bar()
    testbed = load_testbed()
    plan = testbed.world.edit_rounds(n_rounds=2, size=job.size, seed=job.seed, untouched=500)
    model: Any = testbed.model
    seconds = 0.0
    found: dict[str, Evaluation] = {}
    for number, requests in enumerate(plan.rounds):

        def on_step(share: float, number: int = number) -> None:
            news.put((index, (number + share) / 2, f"round {number + 1}"))

        started = time.monotonic()
        folder = job.output / f"round-{number + 1}"
        trainer = train_update(model, testbed.tokenizer, requests, job.method, folder, seed=job.seed, on_step=on_step)
        seconds += time.monotonic() - started
        model = trainer.model
        news.put((index, (number + 1) / 2, "evaluating"))
        for name in ("first",) if number == 0 else ("first_later", "second"):
            found[name] = evaluate(
                model,
                testbed.tokenizer,
                plan.rounds[1 if name == "second" else 0],
                label=f"{job.method.name}, {_MOMENTS[name]}",
                untouched=None if name == "second" else plan.untouched,
                progress=False,
            )
            save_evaluation(found[name], job.output / f"evaluation-{name.replace('_', '-')}")
    news.put((index, 1.0, "done"))
    return JobResult(job, **found, seconds=seconds)


class _Progress(TrainerCallback):
    def __init__(self, on_step: Callable[[float], None]):
        self.on_step = on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_step(state.global_step / state.max_steps)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the frameworks' bars and notices, which are about a single training among many."""
    verbosity = transformers.logging.get_verbosity()
    bars = datasets.utils.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    datasets.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            datasets.utils.logging.enable_progress_bar()
