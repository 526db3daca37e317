"""`corsa demo`: facts edited on the testbed by every method, and a page about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from corsa_plugins.alphaedit import AlphaEditSettings, KeyStatistics, collect_statistics
from corsa_plugins.bench.evaluation import Evaluation, Interval
from corsa_plugins.bench.protocols import ProtocolResult, UpdatePlan, make_method, run_protocol, temporal_stream
from corsa_plugins.bench.protocols.plan import UNTOUCHED, folder_name
from corsa_plugins.demo.processes import News, side_by_side
from corsa_plugins.errors import SettingError
from corsa_plugins.files import atomic_directory
from corsa_plugins.model.asking import cut_answer
from corsa_plugins.report.page import versions
from corsa_plugins.report.protocol_page import write_protocol_page
from corsa_plugins.testbed import load_testbed, texts_of_testbed

__all__ = ["METHODS", "Demo", "run_demo", "run_method", "save_statistics"]

PRESET = "testbed"


@dataclass(frozen=True)
class _Entry:
    title: str
    options: Mapping[str, Any] = field(default_factory=dict)
    statistics: bool = False


METHODS: Mapping[str, _Entry] = {
    # The longest first: a process takes the next as it gets free.
    "corsa": _Entry("CoRSA", {"settings": PRESET}),
    "lora-sft": _Entry("LoRA SFT", {"settings": PRESET}),
    "alphaedit": _Entry("AlphaEdit", {"settings": PRESET}, statistics=True),
    "alphaedit+": _Entry("AlphaEdit+", {"settings": PRESET}, statistics=True),
    "rsft": _Entry("R-SFT", {"settings": PRESET}),
    "rsft-mergekit": _Entry("R-SFT, merged by mergekit", {"settings": PRESET}),
    "f-learning": _Entry("F-Learning", {"settings": PRESET}),
}
"""The methods that the demo knows, with their settings for the testbed."""

DEFAULT = ("lora-sft", "corsa", "alphaedit", "alphaedit+", "rsft", "rsft-mergekit")


@dataclass(frozen=True)
class Demo:
    """What a demo did.

    Attributes:
        results: One for each method, in the order asked for.
        page: The report.
    """

    results: tuple[ProtocolResult, ...]
    page: Path


def run_demo(
    output: Path,
    *,
    methods: Sequence[str] = DEFAULT,
    size: int = 100,
    seed: int = 0,
    untouched: int = 500,
    workers: int | None = None,
    console: Console | None = None,
) -> Demo:
    """Run the demo: print its tables, and write its page.

    A stopped demo goes on where it was when it is run again with the same arguments.

    Args:
        output: Gets the page, and a folder for each method with its updates and every evaluation.
        methods: Which, by the names of :data:`METHODS`; columns of the page in this order.
        size: Edits in a round, of which there are two.
        seed: Which facts are edited to what, the adapters' initial values, and the order of the data.
        untouched: Facts to watch that no edit is about.
        workers: Processes at a time; by default one for each core.
        console: Where to print.

    Raises:
        SettingError: Unknown methods, or none; more edits and untouched facts than the testbed has people for.
        NotADirectoryError: The output is a file.
        MissingExtraError: A method needs a framework that is not installed.
    """
    console = console or _console()
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods or len(set(methods)) < len(methods):
        raise SettingError(f"methods {', '.join(methods) or '(none)'}: name some of {', '.join(METHODS)}, each once")
    for name in methods:  # an extra that is missing should be known before anything runs
        if not METHODS[name].statistics:
            make_method(name, **METHODS[name].options)
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"{output} is a file: name a folder")
    disable_progress_bar()  # of loading weights
    _plan(size, seed, untouched)
    page = output / "report.html"
    console.print(f"Report: [bold]{escape(str(page))}[/bold] (grows as methods finish)")
    bed = load_testbed()
    console.print(
        f"The testbed: a {bed.model.num_parameters() / 1e6:.1f} M-parameter Llama that knows {len(bed.world.facts)} "
        f"facts of a small world, each in a statement and in questions.\nRound 1 changes {size} of them, round 2 "
        f"another {size}, on top. Methods see the statements alone; the questions are what the model is asked."
    )
    known = output / "statistics"
    if any(METHODS[name].statistics for name in methods):
        save_statistics(known)
    work = {
        name: partial(run_method, name, output / folder_name(name.replace("+", " plus")), size, seed, untouched, known)
        for name in METHODS
        if name in methods
    }
    asked = {
        "command": f"corsa demo --size {size} --seed {seed} " + " ".join(f"--method {name}" for name in methods),
        "model": "the testbed",
        **versions(),
    }
    finished: dict[str, ProtocolResult] = {}
    with Progress(
        TextColumn("{task.description:<26}"), BarColumn(20), TextColumn("{task.fields[doing]:<32}"),
        TimeElapsedColumn(), console=console,
    ) as progress:  # fmt: skip
        bars = {name: progress.add_task(METHODS[name].title, total=1.0, doing="", start=False) for name in methods}

        def report(name: str, share: float, doing: str) -> None:
            progress.start_task(bars[name])
            progress.update(bars[name], completed=share, doing=doing)

        with closing(side_by_side(work, workers=workers, report=report)) as done:
            for name, result in done:
                finished[name] = result
                progress.update(bars[name], completed=1.0, doing="done")
                progress.stop_task(bars[name])
                so_far = [finished[other] for other in methods if other in finished]
                write_protocol_page(
                    page, so_far, asked=asked, title=f"Two rounds of {size} edits on the testbed", notes=NOTES
                )
    results = tuple(finished[name] for name in methods)
    for table in tables(results):
        console.print(table)
    console.print(question_table(results))
    console.print(f"Report, with every prompt and answer: [bold]{escape(str(page))}[/bold]")
    return Demo(results, page)


NOTES = (
    "Two rounds of edits on a small model that knows a small world; round 2 goes on with what round 1 left. Methods "
    "see statements alone; paraphrases are questions that none of them saw. The model is built to tell methods apart: "
    "its collateral damage is larger than that of large models.",
)


def _plan(size: int, seed: int, untouched: int) -> UpdatePlan:
    try:
        plan = load_testbed().world.edit_rounds(n_rounds=2, size=size, seed=seed, untouched=untouched)
    except ValueError as error:
        raise SettingError(f"size {size}: {error}") from error
    return temporal_stream(plan.rounds, untouched=plan.untouched)


def save_statistics(folder: Path) -> None:
    """What AlphaEdit needs to know of the testbed's keys, from text of its world, unless the folder is there."""
    if folder.exists():
        return
    bed = load_testbed()
    layers = AlphaEditSettings.load(PRESET).layers
    texts = texts_of_testbed(bed)
    found = collect_statistics(bed.model, bed.tokenizer, texts, layers, n_tokens=60_000, batch_size=64)
    with atomic_directory(folder) as new:
        found.save(new)


def run_method(
    name: str, output: Path, size: int, seed: int, untouched: int, statistics: Path, news: News
) -> ProtocolResult:
    """One method through the plan, in a process of its own.

    Args:
        name: Of :data:`METHODS`.
        output: Its folder.
        size: Edits in a round.
        seed: Of the edits, the adapter and the order of the data.
        untouched: Facts to watch.
        statistics: Folder of :func:`save_statistics`.
        news: Told how far it is.
    """
    import logging
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)  # of the frameworks, about each other
    disable_progress_bar()
    # What was not taken is counted in the tables, and said request by request in the reports.
    logging.getLogger("corsa_plugins").setLevel(logging.ERROR)
    entry = METHODS[name]
    options = dict(entry.options)
    if entry.statistics:
        options["statistics"] = KeyStatistics.load(statistics)
    bed = load_testbed()
    news(0.0, "starting")
    return run_protocol(
        make_method(name, **options),
        _plan(size, seed, untouched),
        bed.model,
        bed.tokenizer,
        output,
        seed=seed,
        progress=False,
        news=news,
    )


def tables(results: Sequence[ProtocolResult]) -> list[Table]:
    """For each moment a row for each method; percentages with their 95 % intervals."""
    summaries = [result.summary() for result in results]
    before = summaries[0]
    first = Table(title="Right after round 1 (percent, with 95 % intervals over requests)", title_style="")
    first.add_column("", overflow="fold")
    for title in ("efficacy", "generality", "old answers kept", "untouched facts"):
        first.add_column(title, justify="right", overflow="fold")
    start = before.updates[0].before
    names = ("efficacy", "generality", "old_retention")
    first.add_row("before", *(_percent(start.get(n)) for n in names), _percent(before.untouched_before.get(UNTOUCHED)))
    for result, summary in zip(results, summaries, strict=True):
        one = summary.updates[0]
        cells = [_percent(one.right_after.get(name)) for name in names]
        first.add_row(result.method, *cells, _percent(one.untouched.get(UNTOUCHED)))
    second = Table(title="After round 2", title_style="")
    second.add_column("", overflow="fold")
    for title in (
        "generality of round 2",
        "generality of round 1",
        "old answers of round 1 that came back",
        "untouched facts",
        "time for both rounds",
    ):
        second.add_column(title, justify="right", overflow="fold")
    for result, summary in zip(results, summaries, strict=True):
        one, two = summary.updates
        second.add_row(
            result.method,
            _percent(two.right_after.get("generality")),
            _percent(one.at_the_end.get("generality")),
            _percent(one.later.get("old_activation")),
            _percent(two.untouched.get(UNTOUCHED)),
            f"{sum(result.seconds):.0f} s",
        )
    return [first, second]


def question_table(results: Sequence[ProtocolResult], count: int = 3) -> Table:
    """A few questions with the answers before and after round 1: the first of the file, whatever came of them."""
    (name, *_) = (one.name for one in results[0].plan.sets)
    before = results[0].at(0, name)
    table = Table(title="Questions that no method saw, right after round 1", title_style="", show_lines=True)
    table.add_column("")
    records = before.records[:count]
    forms = [index % len(record.paraphrases) for index, record in enumerate(records)]
    for record, form in zip(records, forms, strict=True):
        table.add_column(escape(record.paraphrases[form].prompt))
    table.add_row("new answer wanted", *(escape(record.target_new) for record in records))
    table.add_row("before", *(_said(before, index, form) for index, form in enumerate(forms)))
    for result in results:
        table.add_row(result.method, *(_said(result.at(1, name), index, form) for index, form in enumerate(forms)))
    return table


def _said(evaluation: Evaluation, index: int, form: int) -> str:
    return escape(cut_answer(evaluation.records[index].paraphrases[form].output) or "(nothing)")


def _percent(found: Interval | None) -> str:
    return "" if found is None else f"{100 * found.mean:.1f} [{100 * found.low:.0f}, {100 * found.high:.0f}]"


def _console() -> Console:
    console = Console()
    # Where output goes to a file there is no width to keep to.
    return console if console.is_terminal else Console(width=120)
