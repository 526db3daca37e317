"""What a CoRSA step costs beside a LoRA SFT step, and beside TRL's own sum of the two losses.

    python -m benchmarks.cost [--repeats 5] [--device cuda]

Every repeat runs all variants one after the other on the same data, so that the machine's moods fall on all of them;
the table gives the median over repeats of each variant's time relative to LoRA SFT in the same repeat. Times are per
optimiser step, reference log-probabilities precomputed for all.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import torch
from datasets import Dataset
from peft import get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

from corsa_plugins.testbed import load_testbed
from trl_ext import CoRSAConfig, CoRSATrainer
from trl_ext.config import paper_lora_config
from trl_ext.methods.session import quiet

STEPS = 3  # timed, after one to warm up


class _Clock(TrainerCallback):
    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--prompt", type=int, default=24, help="tokens of a prompt, about")
    arguments = parser.parse_args(argv)

    warnings.filterwarnings("ignore", category=FutureWarning)  # of the frameworks, about each other
    tokenizer = load_testbed().tokenizer
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=max(arguments.vocabulary, len(tokenizer)),
        hidden_size=arguments.hidden,
        intermediate_size=arguments.hidden * 11 // 4,
        num_hidden_layers=arguments.layers,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    base = LlamaForCausalLM(config)
    data = _data(arguments.prompt, tokenizer)

    common = {"max_steps": STEPS + 1, "use_cpu": arguments.device == "cpu", "bf16": arguments.device == "cuda"}
    variants: dict[str, Callable[[str], tuple[type[DPOTrainer], DPOConfig]]] = {
        "LoRA SFT": lambda out: (CoRSATrainer, _ours(out, common, dpo_weight=0.0, sam_rho=0.0)),
        "TRL's DPO + SFT, no SAM": lambda out: (DPOTrainer, _theirs(out, common)),
        "CoRSA without SAM, one backward": lambda out: (CoRSATrainer, _ours(out, common, sam_rho=0.0)),
        "CoRSA, one backward": lambda out: (CoRSATrainer, _ours(out, common)),
        "CoRSA, two backwards": lambda out: (CoRSATrainer, _ours(out, common, one_backward=False)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(arguments.repeats):
        for name, make in variants.items():
            seconds[name].append(_time(base, make, data, tokenizer))
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(_table(seconds, base, data))


def _ours(out: str, common: dict[str, Any], **settings: Any) -> CoRSAConfig:
    return CoRSAConfig(out, **_SHARED, **common, **settings)


def _theirs(out: str, common: dict[str, Any]) -> DPOConfig:
    batch = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "precompute_ref_log_probs": True}
    return DPOConfig(out, loss_type=["sigmoid", "sft"], **_SHARED, **common, **batch)


_SHARED: dict[str, Any] = {
    "gradient_checkpointing": False,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_strategy": "no",
}


def _data(prompt: int, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """16 pairs, a batch of the paper's, with prompts of about ``prompt`` tokens and answers of about four."""
    words = ["the", "capital", "of", "this", "land", "is", "known", "by", "name", "to", "many"]
    rows = []
    for index in range(16):
        text = f"Land {index}"
        while len(tokenizer(text).input_ids) < prompt:
            text += " " + words[len(text) % len(words)]
        rows.append({"prompt": text, "chosen": f" town {index}", "rejected": f" place {index + 1}"})
    return Dataset.from_list(rows)


def _time(base: LlamaForCausalLM, make: Callable[..., Any], data: Dataset, tokenizer: PreTrainedTokenizerBase) -> float:
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder, quiet():
        kind, args = make(folder)
        if kind is DPOTrainer:
            extra = {"model": copy.deepcopy(base), "peft_config": paper_lora_config()}
        else:
            torch.manual_seed(0)
            extra = {"model": get_peft_model(copy.deepcopy(base), paper_lora_config())}
        trainer = kind(args=args, train_dataset=data, processing_class=tokenizer, callbacks=[clock], **extra)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return (clock.ends[-1] - clock.ends[0]) / STEPS


def _table(seconds: dict[str, list[float]], base: LlamaForCausalLM, data: Dataset) -> Table:
    names = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl", "peft"))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    table = Table(
        title=f"Seconds per optimiser step of 16 pairs; Llama of {base.num_parameters() / 1e6:.0f} M parameters, "
        f"LoRA rank 32; {device}; {names}",
        title_style="",
    )
    for heading in ("", "median time", "relative to LoRA SFT", "range"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, values in seconds.items():
        ratios = [a / b for a, b in zip(values, seconds["LoRA SFT"], strict=True)]
        spread = f"{min(ratios):.2f} - {max(ratios):.2f}"
        table.add_row(name, f"{statistics.median(values):.3f} s", f"{statistics.median(ratios):.2f} x", spread)
    return table


if __name__ == "__main__":
    main()
