"""`corsa demo`: facts edited on the testbed by every method, and a page about it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from transformers.utils.logging import disable_progress_bar

from corsa_plugins.alphaedit import KeyStatistics, collect_statistics
from corsa_plugins.bench.protocols import ProtocolResult, UpdatePlan, run_protocol, temporal_stream
from corsa_plugins.bench.protocols.plan import method_folder
from corsa_plugins.demo.processes import News, side_by_side
from corsa_plugins.demo.tables import question_table, round_tables
from corsa_plugins.errors import SettingError
from corsa_plugins.files import atomic_directory
from corsa_plugins.methods.registry import method_names, method_spec, method_specs
from corsa_plugins.methods.spec import TESTBED, MethodSpec
from corsa_plugins.report.page import versions
from corsa_plugins.report.protocol_page import write_protocol_page
from corsa_plugins.testbed import load_testbed, texts_of_testbed

__all__ = ["Demo", "Rounds", "default_methods", "demo_methods", "run_demo", "run_method", "save_statistics"]

NOTES = (
    "Two rounds of edits on a small model that knows a small world; round 2 goes on with what round 1 left. Methods "
    "see statements alone; paraphrases are questions that none of them saw. The model is built to tell methods apart: "
    "its collateral damage is larger than that of large models.",
)


@dataclass(frozen=True)
class Rounds:
    """Two rounds of edits of the testbed, the second on top of the first.

    Attributes:
        size: Edits in a round.
        seed: Which facts are edited to what, the adapters' initial values, and the order of the data.
        untouched: Facts to watch that no edit is about.
    """

    size: int = 100
    seed: int = 0
    untouched: int = 500

    def plan(self) -> UpdatePlan:
        """The rounds as a stream.

        Raises:
            SettingError: More edits and untouched facts than the testbed has people for.
        """
        world = load_testbed().world
        try:
            edits = world.edit_rounds(n_rounds=2, size=self.size, seed=self.seed, untouched=self.untouched)
        except ValueError as error:
            raise SettingError(f"size {self.size}: {error}") from error
        return temporal_stream(edits.rounds, untouched=edits.untouched)


@dataclass(frozen=True)
class Demo:
    """What a demo did.

    Attributes:
        results: One for each method, in the order they were named in.
        page: The report.
    """

    results: tuple[ProtocolResult, ...]
    page: Path


def demo_methods() -> dict[str, MethodSpec]:
    """The methods that have settings for the testbed, by name; those whose framework is missing among them."""
    return {spec.name: spec for spec in method_specs() if _is_for_testbed(spec)}


def default_methods() -> tuple[str, ...]:
    """The methods that the demo runs without being told to."""
    return tuple(spec.name for spec in method_specs() if spec.demo)


def run_demo(
    output: Path,
    rounds: Rounds | None = None,
    *,
    methods: Sequence[str] | None = None,
    workers: int | None = None,
    console: Console | None = None,
) -> Demo:
    """Run the demo: print its tables, and write its page.

    A stopped demo goes on where it was when it is run again with the same arguments.

    Args:
        output: Gets the page, and a folder for each method with its updates and every evaluation.
        rounds: What is edited.
        methods: Which, by the names of :func:`demo_methods`; columns of the page in this order. By default
            :func:`default_methods`.
        workers: Processes at a time; by default one for each core.
        console: Where to print.

    Raises:
        SettingError: Unknown methods, or none; more edits and untouched facts than the testbed has people for.
        NotADirectoryError: The output is a file.
        MissingExtraError: A method needs a framework that is not installed.
    """
    console, rounds = console or _console(), rounds or Rounds()
    specs = _chosen(default_methods() if methods is None else methods)
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"{output} is a file: name a folder")
    disable_progress_bar()  # of loading weights
    rounds.plan()
    page = output / "report.html"
    console.print(f"Report: [bold]{escape(str(page))}[/bold] (grows as methods finish)")
    bed = load_testbed()
    console.print(
        f"The testbed: a {bed.model.num_parameters() / 1e6:.1f} M-parameter Llama that knows {len(bed.world.facts)} "
        f"facts of a small world, each in a statement and in questions.\nRound 1 changes {rounds.size} of them, round "
        f"2 another {rounds.size}, on top. Methods see the statements alone; the questions are what the model is asked."
    )
    statistics = output / "statistics"
    save_statistics(statistics, [spec for spec in specs.values() if spec.needs_statistics])
    # The longest first: a process takes the next as it gets free, and training takes longer than solving.
    work = {
        name: partial(run_method, name, output / method_folder(name), rounds, statistics)
        for name in sorted(specs, key=lambda name: "adapter" not in specs[name].changes)
    }
    shown = {
        "command": f"corsa demo --size {rounds.size} --seed {rounds.seed} " + " ".join(f"--method {n}" for n in specs),
        "model": "the testbed",
        **versions(),
    }
    title = f"Two rounds of {rounds.size} edits on the testbed"
    finished: dict[str, ProtocolResult] = {}
    with (
        _progress(specs, console) as (report, end),
        closing(side_by_side(work, workers=workers, report=report)) as done,
    ):
        for name, result in done:
            finished[name] = result
            end(name)
            so_far = [finished[other] for other in specs if other in finished]
            write_protocol_page(page, so_far, asked=shown, title=title, notes=NOTES)
    results = tuple(finished[name] for name in specs)
    for table in (*round_tables(results), question_table(results)):
        console.print(table)
    console.print(f"Report, with every prompt and answer: [bold]{escape(str(page))}[/bold]")
    return Demo(results, page)


def save_statistics(folder: Path, specs: Sequence[MethodSpec]) -> None:
    """What methods need to know of the testbed's keys, from text of its world, unless the folder is there.

    Args:
        folder: To write.
        specs: The methods that need statistics; the layers are those of their settings for the testbed.
    """
    layers = sorted({layer for spec in specs for layer in spec.settings_class().load(TESTBED).layers})
    if folder.exists() or not layers:
        return
    bed = load_testbed()
    texts = texts_of_testbed(bed)
    statistics = collect_statistics(bed.model, bed.tokenizer, texts, layers, n_tokens=60_000, batch_size=64)
    with atomic_directory(folder) as new:
        statistics.save(new)


def run_method(name: str, output: Path, rounds: Rounds, statistics: Path, news: News) -> ProtocolResult:
    """One method through the rounds, in a process of its own.

    Args:
        name: Of :func:`demo_methods`.
        output: Its folder.
        rounds: What is edited.
        statistics: Folder of :func:`save_statistics`.
        news: Told how far it is.
    """
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the frameworks, about each other
    disable_progress_bar()
    # What was not taken is counted in the tables, and said request by request in the reports.
    logging.getLogger("corsa_plugins").setLevel(logging.ERROR)
    spec = method_spec(name)
    options: dict[str, Any] = {"settings": TESTBED}
    if spec.needs_statistics:
        options["statistics"] = KeyStatistics.load(statistics)
    bed = load_testbed()
    news(0.0, "starting")
    return run_protocol(
        spec(**options),
        rounds.plan(),
        bed.model,
        bed.tokenizer,
        output,
        seed=rounds.seed,
        progress=news,
    )


def _is_for_testbed(spec: MethodSpec) -> bool:
    return spec.missing is not None or TESTBED in spec.presets()


def _chosen(names: Sequence[str]) -> dict[str, MethodSpec]:
    """What is known of the methods, in this order; what keeps one from running is found here, before anything runs."""
    known = method_names()
    specs = {name: method_spec(name) for name in names if name in known}
    if not specs or len(specs) < len(names) or not all(map(_is_for_testbed, specs.values())):
        raise SettingError(
            f"methods {', '.join(names) or '(none)'}: name some of {', '.join(demo_methods())}, each once"
        )
    for spec in specs.values():
        if spec.missing:
            raise spec.missing
        if not spec.needs_statistics:
            spec(settings=TESTBED)
    return specs


@contextmanager
def _progress(
    specs: Mapping[str, MethodSpec], console: Console
) -> Iterator[tuple[Callable[[str, float, str], None], Callable[[str], None]]]:
    """A bar for each method, moved by the first function and ended by the second."""
    with Progress(
        TextColumn("{task.description:<26}"), BarColumn(20), TextColumn("{task.fields[doing]:<32}"),
        TimeElapsedColumn(), console=console,
    ) as progress:  # fmt: skip
        bars = {name: progress.add_task(spec.title, total=1.0, doing="", start=False) for name, spec in specs.items()}

        def move(name: str, share: float, doing: str) -> None:
            progress.start_task(bars[name])
            progress.update(bars[name], completed=share, doing=doing)

        def end(name: str) -> None:
            progress.update(bars[name], completed=1.0, doing="done")
            progress.stop_task(bars[name])

        yield move, end


def _console() -> Console:
    console = Console()
    # Where output goes to a file there is no width to keep to.
    return console if console.is_terminal else Console(width=120)
