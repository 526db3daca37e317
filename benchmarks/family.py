"""Every method of the one editor through 1,000 sequential edits of the testbed (docs/methods.md).

    python -m benchmarks.family [--seeds 3 4 5] [--methods alphaedit memit ...] [--edits 1000] [--batch 100]

The edits come in batches; each is made on what the earlier ones have left, with the method's own settings for the
testbed. After the last one all edits are asked, in the statement that was edited and in questions that none saw, and so
are facts of people that no edit is about. The edit state of a stopped run is kept by the batch, and the next run goes
on from it; results are appended to `results.jsonl`. Seconds are of the processor, in one thread; `of them` is the share
of the edits made, where a method refused the rest.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from benchmarks.intervals import shown
from benchmarks.rows import append_row, read_rows
from corsa_plugins.alphaedit import AlphaEditor, EditState, KeyStatistics, collect_statistics
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import CorsaError
from corsa_plugins.methods.registry import method_spec, method_specs
from corsa_plugins.methods.spec import TESTBED
from corsa_plugins.model.asking import score_targets
from corsa_plugins.testbed import Testbed, load_testbed, texts_of_testbed

FIGURES = ("efficacy", "first batch", "generality", "untouched")
"""Shares in percent: of all edits after all of them, of the first batch's, behind questions, of what nobody edited."""


SESSIONS = ("in-context", "locft-bf")
"""Methods beside the editor's: a store of edits, and a training, whose updates follow each other and stay."""


def main(argv: Sequence[str] | None = None) -> None:
    names = [spec.name for spec in method_specs() if spec.reversible] + list(SESSIONS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--methods", nargs="+", default=names, choices=names)
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--untouched", type=int, default=200)
    parser.add_argument("--output", type=Path, default=Path("runs/family"))
    arguments = parser.parse_args(argv)
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the frameworks, about each other
    logging.getLogger("corsa_plugins").setLevel(logging.ERROR)  # what was not edited is in the efficacy
    disable_progress_bar()
    torch.set_num_threads(1)  # more do nothing for a model of this size
    console = Console()
    arguments.output.mkdir(parents=True, exist_ok=True)
    path, bed = arguments.output / "results.jsonl", load_testbed()
    statistics = testbed_statistics(bed, arguments.output / "statistics")
    for seed in arguments.seeds:
        for name in arguments.methods:
            key = {"method": name, "seed": seed, "edits": arguments.edits, "batch": arguments.batch}
            if any(row.items() >= key.items() for row in read_rows(path)):
                continue
            folder = arguments.output / f"{name}-{seed}-{arguments.edits}-{arguments.batch}"
            row = {**key, **measure(name, bed, statistics, key, arguments.untouched, folder)}
            append_row(path, row)
            console.print(json.dumps(row), soft_wrap=True)
    rows = [row for row in read_rows(path) if row["seed"] in arguments.seeds and row["method"] in arguments.methods]
    wide = console if console.is_terminal else Console(width=200)
    wide.print(table([row for row in rows if (row["edits"], row["batch"]) == (arguments.edits, arguments.batch)]))


# Six parameters: a method, where it is run, what with, and where a stopped run is kept.
def measure(
    name: str, bed: Testbed, statistics: KeyStatistics, key: dict[str, Any], untouched: int, folder: Path
) -> dict[str, Any]:
    """One method and seed, through all batches; ``refused`` says after how many edits it refused the next ones."""
    plan = bed.world.edit_rounds(
        n_rounds=key["edits"] // key["batch"], size=key["batch"], seed=key["seed"], untouched=untouched
    )
    times = json.loads((folder / "times.json").read_text()) if folder.exists() else []
    begin = _begin_session if name in SESSIONS else _begin_editing
    begun = begin(name, bed, statistics, folder, len(times), key["seed"])
    refused = None
    try:
        for number, batch in enumerate(plan.rounds[len(times) :], start=len(times)):
            start = time.process_time()
            try:
                begun.update(batch, number)
            except CorsaError as error:
                refused = str(error)
                break
            times.append(time.process_time() - start)
            (folder / "times.json").write_text(json.dumps(times))
        edits = [request for batch in plan.rounds for request in batch]
        right = partial(right_answers, begun.model(), bed.tokenizer)
        row = {
            "title": begun.title,
            "efficacy": right(edits),
            "of those made": right(edits[: len(times) * key["batch"]]) if times else None,
            "first batch": right(plan.rounds[0]),
            "generality": right(edits, reworded=True),
            "untouched": right(plan.untouched),
            "seconds": sum(times),
            "made": len(times) * key["batch"],
            "refused": refused,
        }
    finally:
        begun.end()
    shutil.rmtree(folder, ignore_errors=True)
    return row


@dataclass(frozen=True)
class Begun:
    """A method on the testbed's model, with the updates of a stopped run.

    Attributes:
        title: Of the method, for the table.
        update: Makes an update and keeps it by its number.
        model: What is to be asked, as it is now.
        end: Puts the testbed's model back.
    """

    title: str
    update: Callable[[Sequence[EditRequest], int], None]
    model: Callable[[], Any]
    end: Callable[[], None]


def _begin_editing(
    name: str, bed: Testbed, statistics: KeyStatistics, folder: Path, made: int, seed: int
) -> Begun:  # what every beginning takes
    method: Any = method_spec(name)(statistics=statistics, settings=TESTBED)
    state = EditState.load(folder / "state") if made else None
    editor = AlphaEditor(bed.model, bed.tokenizer, statistics, method.settings, state=state)
    editor.apply()

    def update(batch: Sequence[EditRequest], number: int) -> None:
        editor.edit(batch, answers=False)
        editor.state.save(folder / "state")

    return Begun(method.name, update, lambda: bed.model, editor.revert_all)


def _begin_session(name: str, bed: Testbed, statistics: KeyStatistics, folder: Path, made: int, seed: int) -> Begun:
    method: Any = method_spec(name)(settings=TESTBED)
    if hasattr(method, "history"):
        method = replace(method, history=False)  # what is looked at takes time
    session = method.start(bed.model, bed.tokenizer, seed=seed)
    for number in range(made):
        session.restore(folder / str(number))

    def update(batch: Sequence[EditRequest], number: int) -> None:
        (folder / str(number)).mkdir(parents=True, exist_ok=True)
        session.update(batch, folder / str(number))

    return Begun(method.name, update, lambda: session.model, session.close)


def right_answers(model: Any, tokenizer: Any, requests: Sequence[EditRequest], *, reworded: bool = False) -> float:
    """The share of the prompts behind which every token of the answer is the most likely one."""
    pairs = [(prompt, r.target_new) for r in requests for prompt in (r.paraphrases if reworded else (r.prompt,))]
    scores = score_targets(model, tokenizer, pairs, batch_size=128)
    return sum(score.top1 for score in scores) / len(scores)


def testbed_statistics(bed: Testbed, folder: Path) -> KeyStatistics:
    """Statistics of text about the testbed's world, collected where they are not in the folder yet."""
    if not folder.exists():
        texts = texts_of_testbed(bed)
        collect_statistics(bed.model, bed.tokenizer, texts, (0, 1), n_tokens=60_000, batch_size=64).save(folder)
    return KeyStatistics.load(folder)


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """A row for each method: means over the seeds with the half-width of their 95 % interval."""
    seeds = sorted({row["seed"] for row in rows})
    names = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    found = Table(title=f"Testbed, seeds {seeds}, percent; {names}", title_style="")
    for heading in (
        "method",
        "all edits",
        "the first batch",
        "in questions",
        "untouched facts",
        "s",
        "edits made",
        "of them",
    ):
        found.add_column(heading, justify="left" if heading == "method" else "right")
    for method in dict.fromkeys(row["method"] for row in rows):
        chosen = [row for row in rows if row["method"] == method]
        figures = [shown([row[name] for row in chosen], 100) for name in FIGURES]
        seconds = f"{sum(row['seconds'] for row in chosen) / len(chosen):.0f}"
        made = min(row["made"] for row in chosen)
        of_them = [row["of those made"] for row in chosen if row.get("of those made") is not None]
        part = shown(of_them, 100) if of_them and made < min(row["edits"] for row in chosen) else ""
        found.add_row(chosen[0]["title"], *figures, seconds, str(made), part)
    return found


if __name__ == "__main__":
    main()
