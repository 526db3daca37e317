"""R-SFT beside the same loop in plain transformers, which runs the frozen part and the whole head at every step.

    python -m benchmarks.rsft_cost [--model FOLDER] [--layer 5] [--requests 4] [--epochs 2] [--repeats 5]

Without ``--model``, random weights in the shape of GPT-2 small. Both make the same steps on the same samples with AdamW
and a cosine, on an FFN of the same block, and end with the same weights, which is checked. Every repeat runs both;
shown is the median of the ratios of processor time, and floating point operations as torch counts them.
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from corsa_plugins.data.requests import EditRequest
from corsa_plugins.model.architecture import find_architecture
from corsa_plugins.model.borrowing import frozen
from corsa_plugins.model.tokenization import join
from corsa_plugins.rsft import RSFTSettings, rsft
from corsa_plugins.testbed import load_testbed


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder; by default random weights in the shape of GPT-2 small")
    parser.add_argument("--layer", type=int, default=5)
    parser.add_argument("--requests", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bed = load_testbed()
    tokenizer: Any = bed.tokenizer
    if arguments.model:
        tokenizer = AutoTokenizer.from_pretrained(arguments.model)
        model: Any = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    else:
        model = GPT2LMHeadModel(GPT2Config(vocab_size=50257)).eval()
    requests = bed.world.edit_rounds(n_rounds=1, size=arguments.requests, seed=0, untouched=0).rounds[0]
    settings = RSFTSettings(layer=arguments.layer, epochs=arguments.epochs, loss_threshold=0.0, learning_rate=1e-4)
    runs: dict[str, Callable[[], Any]] = {
        "plain transformers": lambda: plain(model, tokenizer, requests, settings),
        "R-SFT": lambda: rsft(model, tokenizer, requests, settings),
    }
    original = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    name = f"{find_architecture(model).ffn(settings.layer).down.name}.weight"
    seconds: dict[str, list[float]] = {run: [] for run in runs}
    counts, ends = {}, {}
    for repeat in range(arguments.repeats + 1):
        for run, train in runs.items():
            start = time.process_time()
            if repeat:
                train()
                seconds[run].append(time.process_time() - start)
            else:  # the first one warms up
                with FlopCounterMode(display=False) as counter:
                    train()
                counts[run] = counter.get_total_flops()
                ends[run] = model.state_dict()[name] - original[name]
            model.load_state_dict(original)
    difference = float((ends["R-SFT"] - ends["plain transformers"]).norm() / ends["plain transformers"].norm())
    if difference > 1e-2:
        raise RuntimeError(f"another change of {name}, by {difference:.1e}")
    table = Table(
        title=f"{len(requests)} requests, {settings.epochs} epochs of {settings.steps} steps, the FFN of block "
        f"{settings.layer} of {len(find_architecture(model).blocks)}; {model.num_parameters() / 1e6:.0f} M parameters; "
        f"one CPU thread; torch {version('torch')}, transformers {version('transformers')}; medians of "
        f"{arguments.repeats}",
        title_style="",
    )
    for heading in ("", "time", "to plain", "range", "operations", "to plain"):
        table.add_column(heading, justify="left" if not heading else "right")
    for run, values in seconds.items():
        ratios = [a / b for a, b in zip(values, seconds["plain transformers"], strict=True)]
        table.add_row(
            run, f"{statistics.median(values):.2f} s", f"{statistics.median(ratios):.2f} x",
            f"{min(ratios):.2f} - {max(ratios):.2f}", f"{counts[run] / 1e9:.0f} G",
            f"{counts[run] / counts['plain transformers']:.2f} x",
        )  # fmt: skip
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(table)


def plain(model: Any, tokenizer: Any, requests: Sequence[EditRequest], settings: RSFTSettings) -> None:
    """Algorithm 1 as a training loop is usually written: labels, the model's own loss, an optimizer and a schedule."""
    parts = find_architecture(model)
    trained = list(parts.ffn(settings.layer).module.parameters())
    total = settings.epochs * len(requests) * settings.steps
    with frozen(model, but=trained), torch.enable_grad():
        optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 0.5 * (1 + math.cos(math.pi * k / total)))
        for _ in range(settings.epochs):
            for request in requests:
                prompt_ids, target_ids = join(tokenizer, request.prompt, request.target_new)
                ids = torch.tensor([[*prompt_ids, *target_ids]])
                labels = torch.tensor([[*[-100] * len(prompt_ids), *target_ids]])
                for _ in range(settings.steps):
                    loss = model(input_ids=ids, labels=labels, use_cache=False).loss
                    if float(loss.detach()) < settings.loss_threshold:
                        break
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()


if __name__ == "__main__":
    main()
