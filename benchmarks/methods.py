"""Every method through two rounds of edits on the testbed, each right after its round and after both.

    python -m benchmarks.methods [--seeds 3 4 5] [--output runs/methods] [--workers N]

Two rounds of 100 edits, the second on top of the first (papers/corsa.md, 4.2 to 4.4), with the settings of
`corsa demo`. A seed decides which facts are edited to what, the adapters' initial values, and the order of the data.
Everything is kept in the output folder; a stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.intervals import shown
from corsa_plugins.bench.protocols import ProtocolResult, ProtocolSummary
from corsa_plugins.bench.protocols.plan import method_folder
from corsa_plugins.demo.processes import side_by_side
from corsa_plugins.demo.run import SharedStatistics, demo_methods, run_method
from corsa_plugins.demo.worlds import AtlasWorld, Rounds, TestbedWorld, World

SIZE = 100

COLUMNS: dict[str, Callable[[ProtocolSummary], float]] = {
    "efficacy": lambda s: s.updates[0].right_after["efficacy"].mean,
    "generality": lambda s: s.updates[0].right_after["generality"].mean,
    "old answers kept": lambda s: s.updates[0].right_after["old_retention"].mean,
    "specificity": lambda s: s.updates[0].right_after["specificity"].mean,
    "untouched": lambda s: s.updates[0].untouched["untouched"].mean,
    "generality of round 2": lambda s: s.updates[1].right_after["generality"].mean,
    "generality of round 1 at the end": lambda s: s.updates[0].at_the_end["generality"].mean,
    "forgetting": lambda s: s.updates[0].later["forgetting"].mean,
    "old answers activated": lambda s: s.updates[0].later["old_activation"].mean,
    "untouched at the end": lambda s: s.updates[1].untouched["untouched"].mean,
}


def main(argv: Sequence[str] | None = None) -> None:
    specs = demo_methods()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--only", nargs="+", choices=list(specs), default=list(specs), help="these methods")
    parser.add_argument("--atlas", type=Path, help="a folder of corsa atlas, in place of the testbed")
    parser.add_argument("--size", type=int, default=SIZE, help="edits in a round")
    parser.add_argument("--untouched", type=int, default=500, help="facts to watch, at most")
    parser.add_argument("--output", type=Path, default=Path("runs/methods"))
    parser.add_argument("--workers", type=int, help="processes at a time; by default one for each core")
    arguments = parser.parse_args(argv)
    console = Console()
    statistics = SharedStatistics(arguments.output / "statistics", tuple(arguments.only))
    world: World = AtlasWorld(arguments.atlas) if arguments.atlas else TestbedWorld()
    keys = {f"{specs[name].title}, seed {seed}": (name, seed) for seed in arguments.seeds for name in arguments.only}
    work = {
        key: partial(
            run_method,
            name,
            _folder(arguments.output, name, seed),
            Rounds(arguments.size, seed, arguments.untouched),
            statistics,
            world,
        )
        for key, (name, seed) in keys.items()
    }
    results: dict[tuple[str, int], ProtocolResult] = {}
    with Progress(console=console) as progress:
        bars = {key: progress.add_task(key, total=1.0) for key in work}

        def report(key: str, share: float, _: str) -> None:
            progress.update(bars[key], completed=share)

        for key, result in side_by_side(work, workers=arguments.workers, report=report):
            results[keys[key]] = result
    wide = console if console.is_terminal else Console(width=220)
    what = f"{world.model}, two rounds of {arguments.size} edits"
    wide.print(table(results, arguments.seeds, what))


def _folder(output: Path, name: str, seed: int) -> Path:
    return output / f"seed-{seed}" / method_folder(name)


def table(results: dict[tuple[str, int], ProtocolResult], seeds: Sequence[int], what: str) -> Table:
    """A row for each method: the mean over seeds with the half-width of its 95 % interval, in percent."""
    names = {name: version(name) for name in ("torch", "transformers", "trl", "peft", "mergekit")}
    drawn = Table(
        title=f"{what}, seeds {list(seeds)}; {', '.join(' '.join(item) for item in names.items())}",
        title_style="",
    )
    drawn.add_column("percent, mean ± 95 % over seeds")
    for heading in (*COLUMNS, "s (time)"):
        drawn.add_column(heading, justify="right")
    for name in dict.fromkeys(name for name, _ in results):
        of_method = [results[name, seed] for seed in seeds if (name, seed) in results]
        summaries = [result.summary() for result in of_method]
        cells = [shown([get(summary) for summary in summaries], 100) for get in COLUMNS.values()]
        seconds = sum(sum(result.seconds) for result in of_method) / len(of_method)
        drawn.add_row(of_method[0].method, *cells, f"{seconds:.0f}")
    return drawn


if __name__ == "__main__":
    main()
