"""How Algorithm 1 at one layer, and the state it leaves, grow: with edits in force, width, and requests a batch.

    python -m benchmarks.edit_curves [--repeats 5] [--prior 0 100 1000 10000] [--widths 512 1024] [--requests 10 100]

Random keys and residuals, a null space of 70 % of the directions, the search on (five eigenvectors at most), float32
keys in main memory. Beside each time stands the order that is expected of it, in N requests, M earlier ones and width
d: the smaller of the two forms, n = N + M samples or d coordinates. Operations are counted by torch where it counts
them (products; not factorisations). Layers are edited one after the other and cost what one does, times their number.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from importlib.metadata import version

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from corsa_plugins.alphaedit import AlphaEditSettings, NullSpaceRule, SearchSettings
from corsa_plugins.alphaedit.algorithm import LayerProblem, algorithm_1
from corsa_plugins.alphaedit.solver.eigenbasis import Eigenbasis, MemoryVectors
from corsa_plugins.alphaedit.solver.nullspace import NullSpace

SETTINGS = AlphaEditSettings(
    layers=(0,),
    ridge=1.0,
    search=SearchSettings(rule="threshold", threshold=0.0, block=1, limit=5),
    smoothing=None,
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prior", type=int, nargs="+", default=[0, 100, 1000, 10000])
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--requests", type=int, nargs="+", default=[10, 100])
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    table = Table(
        title=f"Algorithm 1 at one layer, five eigenvectors tried; one CPU thread, processor time; torch "
        f"{version('torch')}; medians of {arguments.repeats}",
        title_style="",
    )
    for heading in ("d", "N", "M", "time", "range", "products", "expected order", "state of N + M edits"):
        table.add_column(heading, justify="right")
    for d in arguments.widths:
        space = random_space(d)
        for n in arguments.requests:
            for m in arguments.prior:
                _row(table, random_problem(space, n, m), arguments.repeats)
        table.add_section()
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(table)


def random_space(d: int) -> NullSpace:
    torch.manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(d, d))[0]
    basis = Eigenbasis(torch.linspace(1e-6, 1, d).double() ** 4, MemoryVectors(vectors))
    return NullSpace.from_basis(basis, NullSpaceRule("share", 0.7), "the layer")


def random_problem(space: NullSpace, n: int, m: int) -> LayerProblem:
    missing = torch.randn(space.d // 4, n, dtype=torch.float64)
    return LayerProblem(torch.randn(space.d, n), missing, torch.randn(space.d, m), space)


def _row(table: Table, problem: LayerProblem, repeats: int) -> None:
    (d, n), m = problem.keys.shape, problem.prior_keys.shape[1]
    seconds = []
    for repeat in range(repeats + 1):
        start = time.process_time()
        algorithm_1(problem, SETTINGS, lambda update: 0.0)
        if repeat:  # the first one warms up
            seconds.append(time.process_time() - start)
    with FlopCounterMode(display=False) as counter:
        edit = algorithm_1(problem, SETTINGS, lambda update: 0.0)
    order = "d(N+M)^2 + (N+M)^3, + d^2(N+M) once" if n + m < d else "d^2(N+M) + d^3"
    held = 4 * (2 * d + len(edit.update.left)) * (n + m)
    table.add_row(
        str(d), str(n), str(m), f"{statistics.median(seconds):.3f} s", f"{min(seconds):.3f} - {max(seconds):.3f}",
        f"{counter.get_total_flops() / 1e9:.2f} G", order, f"{held / 1e6:.1f} MB",
    )  # fmt: skip


if __name__ == "__main__":
    main()
