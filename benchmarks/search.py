"""What the search for eigenvectors of AlphaEdit+ costs beside the algorithm as it is printed, with d x d matrices.

    python -m benchmarks.search [--repeats 5] [--sizes 512 1024 2048]

Both add the same eigenvectors to the null space of the same second moment, for 100 new and 200 prior keys, and end
with the update of the weights. As printed, every addition is a d x d solution from scratch (Eq. 8) and the objective of
Eq. 7; in float64 and in float32. Ours is timed from the keys on, with the product by the eigenvectors that it starts
with. Every repeat runs all of them one after the other, so that the machine's moods fall on all. Peak memory is what a
process of its own holds at most beyond the inputs (keys, residual and eigenvectors).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.memory import high_water, marked_from_here
from corsa_plugins.alphaedit.solver.closed_form import SearchSettings, solve

NEW, PRIOR = 100, 200
RIDGE = 10.0
NULL_SHARE = 0.7
FURTHER = 100
"""Additions beyond the compared ones, to time one of ours by: a single one is too short."""


@dataclass(frozen=True)
class Inputs:
    """Prior keys are scaled by (beta Lambda_p)^(1/2) already; an FFN's down map is four times as wide as it is high."""

    U: Tensor
    new: Tensor
    prior: Tensor
    residual: Tensor

    @classmethod
    def random(cls, d: int) -> Inputs:
        g = torch.Generator().manual_seed(d)
        shapes = ((d, d), (d, NEW), (d, PRIOR), (d // 4, NEW))
        square, new, prior, residual = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in shapes)
        return cls(torch.linalg.qr(square).Q, new, prior, residual)

    @property
    def n_null(self) -> int:
        return int(NULL_SHARE * len(self.U))


def ours(inputs: Inputs, additions: int) -> Tensor:
    found = solve(
        inputs.U.T @ inputs.new,
        inputs.U.T @ inputs.prior,
        inputs.residual,
        ridge=RIDGE,
        n_null=inputs.n_null,
        search=SearchSettings(threshold=0.0, limit=additions),
    )
    assert found.added == additions
    return inputs.residual @ (inputs.U[:, : found.rank] @ found.coefficients).T


def as_printed(inputs: Inputs, additions: int) -> Tensor:
    U, new, prior, residual, n_null = inputs.U, inputs.new, inputs.prior, inputs.residual, inputs.n_null
    P = U[:, :n_null] @ U[:, :n_null].T
    moment = new @ new.T + prior @ prior.T
    ridge = RIDGE * torch.eye(len(U), dtype=U.dtype)
    delta = residual.new_zeros(len(residual), len(U))
    for step in range(additions + 1):
        if step:
            column = U[:, n_null + step - 1]
            P = P + torch.outer(column, column)
        delta = torch.linalg.solve(P @ moment + ridge, P @ new @ residual.T).T
        objective = (delta @ new - residual).square().sum() + (delta @ prior).square().sum()
        objective += RIDGE * delta.square().sum()
        float(objective)  # the decision whether to go on
    return delta


def single(inputs: Inputs) -> Inputs:
    return Inputs(inputs.U.float(), inputs.new.float(), inputs.prior.float(), inputs.residual.float())


METHODS: dict[str, tuple[Callable[[Inputs, int], Tensor], bool]] = {
    "ours, float64": (ours, False),
    "as printed, float64": (as_printed, False),
    "as printed, float32": (as_printed, True),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--additions", type=int, default=5)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.worker:
        _measure_memory(arguments.worker, arguments.sizes[0], arguments.additions)
        return
    table = Table(
        title=f"{arguments.additions} eigenvectors added to a null space of {NULL_SHARE:.0%} of d; {NEW} new and "
        f"{PRIOR} prior keys; CPU, {torch.get_num_threads()} threads; torch {version('torch')}; medians of "
        f"{arguments.repeats}",
        title_style="",
    )
    for heading in ("d", "", "time", "ours is faster by", "one more eigenvector", "by", "peak memory"):
        table.add_column(heading, justify="left" if not heading else "right")
    for d in arguments.sizes:
        _rows(table, d, arguments.additions, arguments.repeats)
        table.add_section()
    console = Console()
    (console if console.is_terminal else Console(width=150)).print(table)


def _rows(table: Table, d: int, additions: int, repeats: int) -> None:
    inputs = Inputs.random(d)
    given = {name: single(inputs) if narrow else inputs for name, (_, narrow) in METHODS.items()}
    wanted = as_printed(inputs, additions)
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    each: dict[str, list[float]] = {name: [] for name in METHODS}
    for number in range(repeats):
        Console(stderr=True).print(f"d = {d}, round {number + 1} of {repeats}")
        for name, (method, narrow) in METHODS.items():
            start = time.perf_counter()
            delta = method(given[name], additions)
            seconds[name].append(time.perf_counter() - start)
            if method is ours:
                start = time.perf_counter()
                ours(inputs, additions + FURTHER)
                each[name].append((time.perf_counter() - start - seconds[name][-1]) / FURTHER)
            else:
                each[name].append(seconds[name][-1] / (additions + 1))
            difference = float((delta - wanted).norm() / wanted.norm())
            if difference > (1e-2 if narrow else 1e-9):
                raise RuntimeError(f"{name}, d = {d}: another update, by {difference:.1e}")
    first = next(iter(METHODS))
    for name in METHODS:
        faster = statistics.median(a / b for a, b in zip(seconds[name], seconds[first], strict=True))
        by = statistics.median(each[name]) / statistics.median(each[first])
        table.add_row(
            str(d) if name == first else "", name,
            f"{statistics.median(seconds[name]):.4f} s", "" if name == first else f"{faster:.0f} x",
            f"{1e3 * statistics.median(each[name]):.2f} ms", "" if name == first else f"{by:.0f} x",
            _memory(name, d, additions),
        )  # fmt: skip


def _memory(name: str, d: int, additions: int) -> str:
    # Freed blocks go back to the system at once, so that none of the inputs' leftovers is used again unseen.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, "-m", "benchmarks.search", "--worker", name, "--sizes", str(d)]
    command += ["--additions", str(additions)]
    answer = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    peak = json.loads(answer)["bytes"]
    return "not known here" if peak is None else f"{peak / 2**20:.1f} MiB"


def _measure_memory(name: str, d: int, additions: int) -> None:
    """Print the growth of this process's largest resident memory over one run; null where Linux does not tell."""
    method, narrow = METHODS[name]
    method(single(Inputs.random(128)) if narrow else Inputs.random(128), 1)  # libraries loaded, buffers made
    inputs = Inputs.random(d)
    if narrow:
        inputs = single(inputs)
    try:
        before = marked_from_here()
        method(inputs, additions)
        grown = high_water() - before
    except OSError:
        grown = None
    print(json.dumps({"bytes": grown}))  # noqa: T201


if __name__ == "__main__":
    main()
