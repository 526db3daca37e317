"""Collecting key statistics beside a bare forward pass up to the last layer wanted: tokens a second, and where they go.

    python -m benchmarks.collection [--model FOLDER] [--layers 3 4 5 6 7] [--tokens 4096] [--repeats 5]

Bare is the model's own forward over the same rows, its blocks above the last wanted one left out. Shown beside it is
what operations would allow: those of the passes over those of passes and products, a symmetric product at half of a
full one. That counts float64 as float32; on a CPU a float64 operation takes twice the time. Every repeat runs both.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from corsa_plugins.alphaedit.statistics.capture import KeyCapture
from corsa_plugins.alphaedit.statistics.packing import Position
from corsa_plugins.alphaedit.statistics.sums import KeySums
from corsa_plugins.model.architecture import find_architecture
from corsa_plugins.model.borrowing import eval_mode
from corsa_plugins.model.running import logits_at, stopped_after
from corsa_plugins.testbed import load_testbed


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder; by default the testbed")
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    arguments = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    model: Any = load_testbed().model
    if arguments.model:
        model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=getattr(torch, arguments.dtype))
    parts = find_architecture(model)
    maps = {layer: parts.ffn(layer).down for layer in arguments.layers}
    last = max(arguments.layers)
    torch.manual_seed(0)
    batch = [8, arguments.length]
    batches = [torch.randint(5, model.config.vocab_size, batch) for _ in range(arguments.tokens // (8 * batch[1]))]
    one, mask = torch.zeros(1, dtype=torch.long), torch.ones(batch, dtype=torch.long)

    def bare() -> None:
        with eval_mode(model), stopped_after(parts, last):
            for ids in batches:
                logits_at(parts, ids, mask, one, one)

    def collecting() -> None:
        sums = KeySums({layer: linear.d_in for layer, linear in maps.items()}, 2048, 0)
        capture = KeyCapture(model, maps)
        with eval_mode(model), capture:
            for ids in batches:
                sums.add(capture.keys(ids.tolist()), Position())

    seconds: dict[str, list[float]] = {"bare": [], "collecting": []}
    for repeat in range(arguments.repeats + 1):
        for name, run in (("bare", bare), ("collecting", collecting)):
            start = time.process_time()
            run()
            if repeat:  # the first one warms up
                seconds[name].append(time.process_time() - start)
    below = sum(p.numel() for block in parts.blocks[: last + 1] for p in block.module.parameters())
    floor = 2 * below / (2 * below + sum(linear.d_in**2 for linear in maps.values()))
    ratios = [a / b for a, b in zip(seconds["bare"], seconds["collecting"], strict=True)]
    n = sum(ids.numel() for ids in batches)
    table = Table(
        title=f"{n} tokens in rows of {arguments.length}, layers {arguments.layers}, keys {maps[last].d_in} wide; "
        f"{model.num_parameters() / 1e6:.0f} M parameters, {arguments.dtype}; one CPU thread; torch "
        f"{version('torch')}; medians of {arguments.repeats}",
        title_style="",
    )
    for heading in ("bare, tokens a second", "collecting", "of bare", "range", "operations would allow"):
        table.add_column(heading, justify="right")
    bare_speed, speed = (n / statistics.median(values) for values in seconds.values())
    spread = f"{min(ratios):.2f} - {max(ratios):.2f}"
    table.add_row(f"{bare_speed:.0f}", f"{speed:.0f}", f"{statistics.median(ratios):.2f}", spread, f"{floor:.2f}")
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(table)


if __name__ == "__main__":
    main()
