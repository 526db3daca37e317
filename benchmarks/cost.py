"""What a CoRSA step costs beside TRL's own trainers: SFT, and DPO with the SFT loss added.

    python -m benchmarks.cost [--model FOLDER] [--prompts 42 128] [--repeats 5] [--variants NAME ...] [--device cuda]

One micro-batch of four pairs, from the batch to the gradients that an optimiser reads; the optimiser's step is the same
for all. A trainer of each kind stands on the same frozen weights, with the paper's adapter, reference log-probabilities
computed beforehand. Every repeat runs all of them one after the other on the same pairs, so that the machine's moods
fall on all; the table gives the median over repeats of each one's time relative to TRL's SFT in the same repeat. On a
CPU the time is that of the processor, with one thread. Peak memory is what a process of its own (``--only NAME``) holds
at most beyond model and trainer. Answers are of two words and the end of the text.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from benchmarks.memory import high_water, marked_from_here
from corsa_plugins.corsa import CorsaSettings
from corsa_plugins.testbed import load_testbed
from trl_ext import CoRSAConfig, CoRSATrainer
from trl_ext.activations import under_current_names
from trl_ext.config import paper_lora_config
from trl_ext.methods.session import quiet

PAIRS = 4
WORDS = ["the", "capital", "of", "this", "land", "is", "known", "by", "name", "to", "many"]
BASE = "TRL's SFTTrainer"
COMMON: dict[str, Any] = {
    "per_device_train_batch_size": PAIRS,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_strategy": "no",
    "train_sampling_strategy": "sequential",
}
OURS: dict[str, Mapping[str, Any]] = {
    "LoRA SFT by CoRSATrainer": {"dpo_weight": 0.0, "sam_rho": 0.0},
    "CoRSA": {},
    "CoRSA, every row by itself": {"share_prompts": False},
    "CoRSA, pcgrad: false": {"pcgrad": False},
    "CoRSA without SAM": {"sam_rho": 0.0},
}
"""Variants of `CoRSAConfig`."""

VARIANTS = [BASE, "TRL's DPOTrainer, sigmoid + sft", *OURS]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder or name; by default the testbed")
    parser.add_argument("--prompts", type=int, nargs="+", default=[42, 128], help="tokens of a prompt")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help="by default all")
    parser.add_argument("--no-memory", action="store_true", help="measure the time alone")
    parser.add_argument("--only", choices=VARIANTS, help="measure the peak memory of one variant, as JSON")
    arguments = parser.parse_args(argv)
    warnings.filterwarnings("ignore")  # of the frameworks, about each other
    logging.disable(logging.WARNING)
    disable_progress_bar()
    disable_progress_bars()
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    base, tokenizer = _model(arguments.model, arguments.device)
    if arguments.only:
        for prompt in arguments.prompts:
            print(json.dumps({"bytes": peak_of(base, tokenizer, prompt, arguments.only, arguments.device)}))  # noqa: T201
        return
    console = Console()
    for prompt in arguments.prompts:
        names = list(dict.fromkeys([*VARIANTS[:2], *arguments.variants]))  # what all are compared with is always there
        steps = {name: make_step(base, tokenizer, prompt, name, arguments.device) for name in names}
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for repeat in range(arguments.repeats + 1):
            for name, step in steps.items():
                taken = timed(step, arguments.device)
                if repeat:  # the first one warms up
                    seconds[name].append(taken)
        del steps
        if {"CoRSA", "CoRSA without SAM"} <= set(names):
            both = zip(seconds["CoRSA"], seconds["CoRSA without SAM"], strict=True)
            seconds["CoRSA, sam_interval: 4"] = [_some(*pair, CorsaSettings(sam_interval=4)) for pair in both]
        memory = {} if arguments.no_memory else {name: _memory_of(name, prompt, arguments) for name in names}
        table = _table(seconds, memory, f"{base.num_parameters() / 1e6:.0f} M parameters, prompts of {prompt} tokens")
        (console if console.is_terminal else Console(width=160)).print(table)


def _some(with_sam: float, without: float, settings: CorsaSettings) -> float:
    """The mean step of a training of which some steps are with SAM."""
    share = settings.looks(1000) - 1
    return share * with_sam + (1 - share) * without


def _model(folder: str | None, device: str) -> tuple[Any, Any]:
    if folder is None:
        testbed = load_testbed()
        return testbed.model.to(device), testbed.tokenizer
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device), AutoTokenizer.from_pretrained(folder)


def make_pairs(prompt: int, tokenizer: Any) -> Dataset:
    """Prompts of as many tokens, and two answers that most tokenizers have two tokens for."""
    rows = []
    for index in range(PAIRS):
        text = f"Land {index}"
        while len(tokenizer(text).input_ids) < prompt:
            longer = f"{text} {WORDS[len(text) % len(WORDS)]}"
            text = longer if len(tokenizer(longer).input_ids) <= prompt else f"{text} the"
        rows.append({"prompt": text, "chosen": " the capital", "rejected": " many land"})
    return Dataset.from_list(rows)


def make_step(base: Any, tokenizer: Any, prompt: int, name: str, device: str) -> Callable[[], None]:
    """Of one variant: a micro-batch from its data loader to the gradients, as its trainer's loop does it."""
    # The weights are frozen and every trainer's own modules stand on the same ones.
    model = copy.deepcopy(base, memo={id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())})
    pairs = make_pairs(prompt, tokenizer)
    common = {**COMMON, "use_cpu": device == "cpu", "bf16": device == "cuda"}
    given = {"model": model, "processing_class": tokenizer, "peft_config": paper_lora_config()}
    folder = tempfile.mkdtemp(prefix="cost-")
    trainer: Any
    with quiet():
        if name == BASE:
            data = pairs.rename_column("chosen", "completion").remove_columns("rejected")
            trainer = SFTTrainer(args=SFTConfig(folder, **under_current_names(common)), train_dataset=data, **given)
        elif name in OURS:
            trainer = CoRSATrainer(args=CoRSAConfig(folder, **{**common, **OURS[name]}), train_dataset=pairs, **given)
        else:
            settings = {**common, "loss_type": ["sigmoid", "sft"], "precompute_ref_log_probs": True}
            trainer = DPOTrainer(args=DPOConfig(folder, **under_current_names(settings)), train_dataset=pairs, **given)
        (batch,) = list(trainer.get_train_dataloader())
    trainer.current_gradient_accumulation_steps = 1
    trainer.state.max_steps = 1
    model = trainer.accelerator.prepare_model(trainer.model)

    def step() -> None:
        trainer.training_step(model, {k: v.clone() if isinstance(v, Tensor) else v for k, v in batch.items()})
        model.zero_grad()

    return step


def timed(step: Callable[[], None], device: str) -> float:
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def _memory_of(name: str, prompt: int, arguments: Any) -> int | None:
    """Bytes that one step of a variant takes beyond model and trainer, measured in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.cost", "--only", name, "--prompts", str(prompt)]
    command += ["--device", arguments.device, *(["--model", arguments.model] if arguments.model else [])]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    found: int | None = json.loads(result.stdout.strip().splitlines()[-1])["bytes"]
    return found


def peak_of(base: Any, tokenizer: Any, prompt: int, name: str, device: str) -> int | None:
    step = make_step(base, tokenizer, prompt, name, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    try:
        before = marked_from_here()
        step()
        return high_water() - before
    except OSError:
        return None


def _table(seconds: Mapping[str, list[float]], memory: Mapping[str, int | None], title: str) -> Table:
    names = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl", "peft"))
    table = Table(title=f"A micro-batch of {PAIRS} pairs, LoRA rank 32, {title}; {names}", title_style="")
    for heading in ("", "median time", "to TRL's SFT", "range", "to TRL's DPO", "peak memory"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, values in seconds.items():
        to_sft, to_dpo = (_ratios(values, seconds[other]) for other in VARIANTS[:2])
        held = memory.get(name)
        table.add_row(
            name,
            f"{statistics.median(values):.3f} s",
            f"{statistics.median(to_sft):.2f} x",
            f"{min(to_sft):.2f} - {max(to_sft):.2f}",
            f"{statistics.median(to_dpo):.2f} x",
            "" if held is None else f"{held / 2**20:.0f} MiB",
        )
    return table


def _ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    return [value / other for value, other in zip(values, others, strict=True)]


if __name__ == "__main__":
    main()
