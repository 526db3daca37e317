"""What a whole AlphaEdit+ edit costs beside the algorithm as it is published.

    python -m benchmarks.edit_cost [--repeats 5] [--requests 30] [--hidden 256] [--ffn 1024]

A random Llama; two layers; a batch of requests on top of an earlier one of the same size. As published: v* of one
request after the other, the whole model run for each step; the search ten eigenvectors at a time, with a d x d
solution in float32 and the objective for each; prior keys as a d x d matrix. Both take the same contexts, null space
and number of additions, and end with the same weights, which is checked. Every repeat runs both one after the other.
Peak memory is what a process of its own holds at most beyond model and statistics.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.memory import high_water, marked_from_here
from benchmarks.values import published_value
from corsa_plugins.alphaedit import (
    AlphaEditor,
    AlphaEditSettings,
    KeyStatistics,
    NullSpaceRule,
    SearchSettings,
    ValueSettings,
    collect_statistics,
)
from corsa_plugins.alphaedit.lookup.contexts import generate_contexts
from corsa_plugins.alphaedit.lookup.keys import request_keys, request_outputs
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.model.architecture import find_architecture
from corsa_plugins.testbed import load_testbed
from corsa_plugins.testbed.corpus import facts_as_text

LAYERS = (1, 2)
SETTINGS = AlphaEditSettings(
    layers=LAYERS,
    null_space=NullSpaceRule("share", 0.7),
    values=ValueSettings(steps=25, lr=0.1, clamp=4.0),
    ridge=1.0,
    prior_weight=10.0,
    search=SearchSettings(threshold=0.0, block=10, limit=20),
    smoothing=None,
)


@dataclass
class Bench:
    model: Any
    tokenizer: Any
    statistics: KeyStatistics
    requests: list[EditRequest]
    earlier: list[EditRequest]

    @classmethod
    def build(cls, n: int, hidden: int, ffn: int) -> Bench:
        bed = load_testbed()
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(bed.tokenizer),
            hidden_size=hidden,
            intermediate_size=ffn,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=8,
            max_position_embeddings=256,
            initializer_range=0.05,
        )
        model = LlamaForCausalLM(config).eval()
        texts = list(facts_as_text(bed.world))
        known = collect_statistics(model, bed.tokenizer, texts, LAYERS, n_tokens=10**6, pack=False, batch_size=64)
        rounds = bed.world.edit_rounds(n_rounds=2, size=n, seed=0, untouched=0).rounds
        return cls(model, bed.tokenizer, known, rounds[1], rounds[0])

    def restore(self, weights: dict[str, Tensor]) -> None:
        self.model.load_state_dict(weights)


class Published:
    """The published loop; prior keys as one d x d sum per layer."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.contexts = generate_contexts(bench.model, bench.tokenizer)
        self.parts = find_architecture(bench.model)
        self.P: list[Tensor] = []
        self.columns: list[Tensor] = []
        self.prior: list[list[Tensor]] = []
        for layer in LAYERS:
            _, vectors = torch.linalg.eigh(bench.statistics.moment(layer))
            n_null = int(0.7 * len(vectors) + 0.5)
            self.P.append((vectors[:, :n_null] @ vectors[:, :n_null].T).float())
            self.columns.append(vectors[:, n_null:].float())
            self.prior.append([])

    @torch.no_grad()
    def edit(self, requests: Sequence[EditRequest]) -> None:
        model, tokenizer, last = self.bench.model, self.bench.tokenizer, LAYERS[-1]
        with torch.enable_grad():
            z = [published_value(model, tokenizer, r, last, self.contexts, SETTINGS.values) for r in requests]
        values = torch.stack(z, dim=1)
        for place, layer in enumerate(LAYERS):
            keys = request_keys(model, tokenizer, requests, [layer], self.contexts)[layer]
            residual = (values - request_outputs(model, tokenizer, requests, last)) / (len(LAYERS) - place)
            prior = torch.zeros(len(keys), len(keys))
            for old in self.prior[place]:
                units = (old / old.norm(dim=0)).T @ (keys / keys.norm(dim=0))
                prior += (old * (1 - units.abs().amax(dim=1))) @ old.T
            moment = keys @ keys.T + SETTINGS.prior_weight * prior
            ridge = SETTINGS.ridge * torch.eye(len(keys))
            P = self.P[place]
            for start in range(0, 21, 10):
                if start:
                    added = self.columns[place][:, start - 10 : start]
                    P = P + added @ added.T
                delta = torch.linalg.solve(P @ moment + ridge, P @ keys @ residual.T).T
                objective = (delta @ keys - residual).square().sum() + SETTINGS.prior_weight * (
                    delta @ prior * delta
                ).sum()
                float(objective + SETTINGS.ridge * delta.square().sum())  # the decision whether to go on
            self.parts.ffn(layer).down.weight.add_(delta)
        for place, layer in enumerate(LAYERS):
            self.prior[place].append(request_keys(model, tokenizer, requests, [layer], self.contexts)[layer])


def ours(bench: Bench) -> Callable[[Sequence[EditRequest]], Any]:
    editor = AlphaEditor(bench.model, bench.tokenizer, bench.statistics, SETTINGS)
    return lambda requests: editor.edit(requests, answers=False)


METHODS: dict[str, Callable[[Bench], Callable[[Sequence[EditRequest]], Any]]] = {
    "ours": ours,
    "as published": lambda bench: Published(bench).edit,
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--requests", type=int, default=30)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--ffn", type=int, default=1024)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    logging.getLogger("corsa_plugins").setLevel(logging.ERROR)  # a random model answers nothing; only the cost counts
    bench = Bench.build(arguments.requests, arguments.hidden, arguments.ffn)
    if arguments.worker:
        _measure_memory(bench, arguments.worker)
        return
    original = {name: tensor.clone() for name, tensor in bench.model.state_dict().items()}
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    for number in range(arguments.repeats):
        Console(stderr=True).print(f"round {number + 1} of {arguments.repeats}")
        ends = {}
        for name, make in METHODS.items():
            edit = make(bench)
            edit(bench.earlier)
            start = time.perf_counter()
            edit(bench.requests)
            seconds[name].append(time.perf_counter() - start)
            ends[name] = [bench.model.model.layers[layer].mlp.down_proj.weight.detach().clone() for layer in LAYERS]
            bench.restore(original)
        for layer, a, b in zip(LAYERS, *ends.values(), strict=True):
            moved = b - original[f"model.layers.{layer}.mlp.down_proj.weight"]
            difference = float((a - b).norm() / moved.norm())
            if difference > 1e-3:
                raise RuntimeError(f"layer {layer}: another update, by {difference:.1e}")
    table = Table(
        title=f"A batch of {arguments.requests} edits at two layers of a Llama of width {arguments.hidden}, FFN "
        f"{arguments.ffn}, on top of {arguments.requests} earlier ones, 20 eigenvectors added; CPU, "
        f"{torch.get_num_threads()} threads; torch {version('torch')}, transformers {version('transformers')}; medians "
        f"of {arguments.repeats}",
        title_style="",
    )
    for heading in ("", "time", "ours is faster by", "range", "peak memory"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name in METHODS:
        ratios = [a / b for a, b in zip(seconds[name], seconds["ours"], strict=True)]
        faster = f"{statistics.median(ratios):.1f} x" if name != "ours" else ""
        spread = f"{min(ratios):.1f} - {max(ratios):.1f}" if name != "ours" else ""
        table.add_row(name, f"{statistics.median(seconds[name]):.2f} s", faster, spread, _memory(name, arguments))
    console = Console()
    (console if console.is_terminal else Console(width=150)).print(table)


def _memory(name: str, arguments: argparse.Namespace) -> str:
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, "-m", "benchmarks.edit_cost", "--worker", name]
    for option in ("requests", "hidden", "ffn"):
        command += [f"--{option}", str(getattr(arguments, option))]
    answer = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    peak = json.loads(answer.splitlines()[-1])["bytes"]
    return "not known here" if peak is None else f"{peak / 2**20:.0f} MiB"


def _measure_memory(bench: Bench, name: str) -> None:
    """Print how far this process's largest resident memory grows over the second batch."""
    edit = METHODS[name](bench)
    try:
        before = marked_from_here()
        edit(bench.earlier)
        edit(bench.requests)
        grown = high_water() - before
    except OSError:
        grown = None
    print(json.dumps({"bytes": grown}))  # noqa: T201


if __name__ == "__main__":
    main()
