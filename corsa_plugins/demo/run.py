"""`corsa demo`: facts edited by every method, and a page about it."""

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

from corsa_plugins.alphaedit import KeyStatistics
from corsa_plugins.bench.protocols import ProtocolResult, run_protocol
from corsa_plugins.bench.protocols.plan import method_folder
from corsa_plugins.demo.processes import News, side_by_side
from corsa_plugins.demo.tables import question_table, round_tables
from corsa_plugins.demo.worlds import Rounds, TestbedWorld, World
from corsa_plugins.errors import SettingError
from corsa_plugins.files import sole_use
from corsa_plugins.methods.registry import method_names, method_spec, method_specs
from corsa_plugins.methods.spec import MethodSpec
from corsa_plugins.report.page import versions
from corsa_plugins.report.protocol_page import write_protocol_page

__all__ = [
    "Demo",
    "Rounds",
    "SharedStatistics",
    "default_methods",
    "demo_methods",
    "in_turn",
    "run_demo",
    "run_method",
]


_BEFORE = "before"
"""The folder of what the model answers before any edit."""
_TRAININGS = "trainings"
"""The folder of trainings that several methods begin with."""


@dataclass(frozen=True)
class Demo:
    """What a demo did.

    Attributes:
        results: One for each method, in the order they were named in.
        page: The report.
    """

    results: tuple[ProtocolResult, ...]
    page: Path


@dataclass(frozen=True)
class SharedStatistics:
    """The statistics of a model's keys that the methods of a run share.

    The first that needs them collects them, while another does what needs none.

    Attributes:
        folder: Where they are, or will be.
        methods: By name, whose settings say of which layers; those that need none do not count.
    """

    folder: Path
    methods: tuple[str, ...]

    def of(self, world: World) -> KeyStatistics:
        """Those of a world's model; who comes while they are collected waits."""
        specs = [method_spec(name) for name in self.methods]
        with sole_use(self.folder.parent, wait=True):
            world.save_statistics(self.folder, [spec for spec in specs if spec.needs_statistics])
        return KeyStatistics.load(self.folder)


def demo_methods(world: World | None = None) -> dict[str, MethodSpec]:
    """The methods that can be set up for a world, by name; those whose framework is missing among them."""
    world = world or TestbedWorld()
    return {spec.name: spec for spec in method_specs() if world.has(spec)}


def default_methods() -> tuple[str, ...]:
    """The methods that the demo runs without being told to."""
    return tuple(spec.name for spec in method_specs() if spec.demo)


def run_demo(
    output: Path,
    rounds: Rounds | None = None,
    *,
    world: World | None = None,
    methods: Sequence[str] | None = None,
    workers: int | None = None,
    console: Console | None = None,
) -> Demo:
    """Run the demo: print its tables, and write its page.

    A stopped demo goes on where it was when it is run again with the same arguments.

    Args:
        output: Gets the page, and a folder for each method with its updates and every evaluation.
        rounds: What is edited.
        world: Of which model; by default the testbed.
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
    world = world or TestbedWorld()
    specs = _chosen(default_methods() if methods is None else methods, world)
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"{output} is a file: name a folder")
    disable_progress_bar()  # of loading weights
    world.plan(rounds)
    page = output / "report.html"
    console.print(f"Report: [bold]{escape(str(page))}[/bold] (grows as methods finish)")
    console.print(world.about(rounds))
    statistics = SharedStatistics(output / "statistics", tuple(specs))
    work = {
        name: partial(run_method, name, output / method_folder(name), rounds, statistics, world)
        for name in in_turn(specs)
    }
    shown = {
        "command": f"corsa demo{world.arguments} --size {rounds.size} --seed {rounds.seed} "
        + " ".join(f"--method {n}" for n in specs),
        "model": world.model,
        **versions(),
    }
    title = f"Two rounds of {rounds.size} edits {world.title}"
    finished: dict[str, ProtocolResult] = {}
    with (
        _progress(specs, console) as (report, end),
        closing(side_by_side(work, workers=workers, report=report)) as done,
    ):
        for name, result in done:
            finished[name] = result
            end(name)
            so_far = [finished[other] for other in specs if other in finished]
            write_protocol_page(page, so_far, asked=shown, title=title, notes=world.notes)
    results = tuple(finished[name] for name in specs)
    for table in (*round_tables(results), question_table(results)):
        console.print(table)
    console.print(f"Report, with every prompt and answer: [bold]{escape(str(page))}[/bold]")
    return Demo(results, page)


# Six parameters: of a run in a process of its own.
def run_method(
    name: str, output: Path, rounds: Rounds, statistics: SharedStatistics, world: World, news: News
) -> ProtocolResult:
    """One method through the rounds, in a process of its own.

    Args:
        name: Of :func:`demo_methods`.
        output: Its folder.
        rounds: What is edited.
        statistics: Of the model's keys.
        world: Of which model.
        news: Told how far it is.
    """
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the frameworks, about each other
    disable_progress_bar()
    # What was not taken is counted in the tables, and said request by request in the reports.
    logging.getLogger("corsa_plugins").setLevel(logging.ERROR)
    spec = method_spec(name)
    options = world.options(spec)
    news(0.0, "starting")
    if spec.needs_statistics:
        options["statistics"] = statistics.of(world)
    model, tokenizer = world.load()
    method: Any = spec(**options)
    if hasattr(method, "sharing"):
        method = method.sharing(output.parent / _TRAININGS)
    return run_protocol(
        method,
        world.plan(rounds),
        model,
        tokenizer,
        output,
        seed=rounds.seed,
        progress=news,
        before=output.parent / _BEFORE,
    )


def in_turn(specs: Mapping[str, MethodSpec]) -> list[str]:
    """The names of methods in the order in which they are begun: the longest first, as a process takes the next one
    when it is free.

    Adapters on all layers come first. Methods of the same settings find some things once for all of them: settings that
    are chosen for the model, or a training that they begin with. So the first of each kind comes next, and the others
    last, when there is hardly anything left to wait for.
    """
    kinds = [specs[name].settings for name in specs]
    later = {name: kinds[:place].count(kinds[place]) for place, name in enumerate(specs)}
    return sorted(specs, key=lambda name: (0, 0) if "adapter" in specs[name].changes else (1, later[name]))


def _chosen(names: Sequence[str], world: World) -> dict[str, MethodSpec]:
    """What is known of the methods, in this order; what keeps one from running is found here, before anything runs."""
    known = method_names()
    specs = {name: method_spec(name) for name in names if name in known}
    if not specs or len(specs) < len(names) or not all(map(world.has, specs.values())):
        raise SettingError(
            f"methods {', '.join(names) or '(none)'}: name some of {', '.join(demo_methods(world))}, each once"
        )
    for spec in specs.values():
        if spec.missing:
            raise spec.missing
        if not spec.needs_statistics:
            spec(**world.options(spec))
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
