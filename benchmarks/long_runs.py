"""Long runs on the testbed: 2,000 sequential edits in batches of 100, and 20 updates of one CoRSA adapter.

    python -m benchmarks.long_runs [--methods alphaedit+ corsa] [--updates 20] [--size 100] [--seed 3]

After every update: what it took, what the process holds, and what the model says to the update's requests, to the first
update's, to everything that still holds, and to facts that no update is about. People who are left to edit have fewer
facts than there are edits, so the last updates revise facts of the first ones, to answers that are neither the old nor
the edited one. A line for each update is kept in the output folder, and so is the last state: a stopped run goes on.
Memory is compared within one process alone, and begins anew where a run was stopped.

Beside each time of an edit stands the one expected of it: that of the second update, and what Algorithm 1 takes more
at one layer with as many earlier edits, on random keys with the same settings (benchmarks/edit_curves.py).
"""

from __future__ import annotations

import argparse
import gc
import logging
import random
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from benchmarks.edit_curves import random_problem, random_space
from benchmarks.family import right_answers, testbed_statistics
from benchmarks.memory import high_water, marked_from_here
from benchmarks.rows import append_row, read_rows
from corsa_plugins.alphaedit import AlphaEditor, AlphaEditSettings, EditState
from corsa_plugins.alphaedit.algorithm import algorithm_1
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.testbed import Testbed, load_testbed

Begun = tuple[Callable[[], Any], Callable[[Sequence[EditRequest], Path], None], Callable[[], int]]
"""The model as it is, what makes an update and keeps it in a folder, and the bytes that it must hold by now."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=["alphaedit+", "corsa"], default=["alphaedit+", "corsa"])
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--size", type=int, default=100)
    parser.add_argument("--untouched", type=int, default=500)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/long"))
    arguments = parser.parse_args(argv)
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the frameworks, about each other
    logging.getLogger("corsa_plugins").setLevel(logging.ERROR)  # what was not edited is in the figures
    disable_progress_bar()
    torch.set_num_threads(1)  # more do nothing for a model of this size
    console = Console()
    wide = console if console.is_terminal else Console(width=180)
    for name in arguments.methods:
        rows = run(name, arguments.updates, arguments.size, arguments.untouched, arguments.seed, arguments.output)
        wide.print(table(name, rows))


# Six parameters: which run, of how much, and where it is kept.
def run(name: str, updates: int, size: int, untouched: int, seed: int, output: Path) -> list[dict[str, Any]]:
    """The rows of all updates; those that a stopped run has made are not made again."""
    bed = load_testbed()
    rounds, watched = plan(bed, updates, size, untouched, seed)
    path = output / f"{name}-{updates}-{size}-{untouched}-{seed}"
    path.mkdir(parents=True, exist_ok=True)
    rows = read_rows(path / "rows.jsonl")
    begin = _begin_editing if name == "alphaedit+" else _begin_training
    model, update, held = begin(bed, output, path / str(len(rows)) if rows else None, seed)
    standing = _standing(rounds[: len(rows)])
    begun = len(rows)
    for number, requests in enumerate(rounds[begun:], start=begun + 1):
        gc.collect()
        resting, holding = marked_from_here(), held()
        start = time.process_time()
        update(requests, path / str(number))
        seconds = time.process_time() - start
        peak = high_water()
        gc.collect()
        standing |= _standing([requests])
        asked = {"this update": requests, "the first": _of(rounds[0], standing), "all": list(standing.values())}
        asked["untouched"] = watched
        shares = {what: right_answers(model(), bed.tokenizer, of) for what, of in asked.items()}
        row = {
            "update": number, "process": begun, "seconds": seconds, "before": resting, "peak": peak, "held": holding,
            **shares, "standing": len(standing),
        }  # fmt: skip
        if name == "alphaedit+":
            row["algorithm"] = _algorithm_alone(size, (number - 1) * size, bed.model.config.intermediate_size)
        append_row(path / "rows.jsonl", row)
    return read_rows(path / "rows.jsonl")


def plan(
    bed: Testbed, updates: int, size: int, untouched: int, seed: int
) -> tuple[list[list[EditRequest]], list[EditRequest]]:
    """So many updates, and the facts to watch; where the world has no more facts to edit, the first ones are revised.

    Raises:
        ValueError: The world has too few people for one update and the untouched facts.
    """
    config = bed.world.config
    people = config.n_subjects - -(-untouched // config.n_relations)
    once = min(updates, people * config.n_relations // size)
    drawn = bed.world.edit_rounds(n_rounds=once, size=size, seed=seed, untouched=untouched)
    rng = random.Random(f"revisions {seed}")
    rounds = list(drawn.rounds)
    while len(rounds) < updates:
        rounds.append([_revised(bed, request, rng) for request in rounds[len(rounds) - once]])
    return rounds, drawn.untouched


def _revised(bed: Testbed, request: EditRequest, rng: random.Random) -> EditRequest:
    facts = bed.world.facts_of[request.subject or ""]
    (relation,) = {fact.relation for fact in facts if bed.world.prompts(fact) == request.prompt}
    others = [a for a in bed.world.answers(relation) if a not in (request.target_new, request.target_old)]
    return request.model_copy(update={"target_new": rng.choice(others), "target_old": request.target_new})


def _standing(rounds: Sequence[Sequence[EditRequest]]) -> dict[str, EditRequest]:
    """By prompt, the last request about it."""
    return {request.prompt: request for requests in rounds for request in requests}


def _of(requests: Sequence[EditRequest], standing: dict[str, EditRequest]) -> list[EditRequest]:
    """What holds of the facts of these requests."""
    return [standing[request.prompt] for request in requests]


def _begin_editing(bed: Testbed, output: Path, kept: Path | None, seed: int) -> Begun:
    settings = AlphaEditSettings.load("testbed")
    state = EditState.load(kept) if kept is not None else None
    statistics = testbed_statistics(bed, output / "statistics")
    editor = AlphaEditor(bed.model, bed.tokenizer, statistics, settings, state=state)
    editor.apply()
    width = bed.model.config.intermediate_size, bed.model.config.hidden_size

    def update(requests: Sequence[EditRequest], folder: Path) -> None:
        editor.edit(requests, answers=False)
        editor.state.save(folder)

    def held() -> int:
        edits = sum(len(batch.requests) for batch in editor.state.batches)
        return 4 * (2 * width[0] + width[1]) * edits * len(settings.layers)

    return lambda: bed.model, update, held


def _begin_training(bed: Testbed, output: Path, kept: Path | None, seed: int) -> Begun:
    from trl_ext.methods.lora import LoraMethod
    from trl_ext.methods.settings import adapter_settings

    method = LoraMethod("CoRSA", settings=replace(adapter_settings("testbed"), history_looks=0))
    session = method.start(bed.model, bed.tokenizer, seed=seed)
    if kept is not None:
        session.restore(kept)
    return lambda: session.model, session.update, lambda: 0


def _algorithm_alone(n: int, m: int, d: int) -> float:
    """Seconds of Algorithm 1 at a layer of width ``d``, on random keys of ``n`` requests and ``m`` earlier ones."""
    settings = AlphaEditSettings.load("testbed")
    problem = random_problem(random_space(d), n, m)
    start = time.process_time()
    algorithm_1(problem, settings, lambda update: 0.0)
    return time.process_time() - start


def table(name: str, rows: Sequence[dict[str, Any]]) -> Table:
    """A row for each update."""
    names = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers"))
    found = Table(title=f"{name} on the testbed, one CPU thread; percent, processor time, MB; {names}", title_style="")
    headings = ["update", "s"] + (["s expected"] if "algorithm" in rows[0] else [])
    headings += ["memory before", "of it keys and factors"] if "algorithm" in rows[0] else ["memory before"]
    headings += ["most memory", "this update", "the first", "all", "untouched"]
    for heading in headings:
        found.add_column(heading, justify="right")
    for row in rows:
        expected = [f"{_expected(row, rows):.1f}"] if "algorithm" in row else []
        kinds = ("before", "held", "peak") if "algorithm" in row else ("before", "peak")
        memory = [f"{row[what] / 1e6:.0f}" for what in kinds]
        shares = [f"{100 * row[what]:.1f}" for what in ("this update", "the first", "all", "untouched")]
        found.add_row(str(row["update"]), f"{row['seconds']:.1f}", *expected, *memory, *shares)
    return found


def _expected(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> float:
    """Seconds of an edit: the second one's (the first warms up), and what Algorithm 1 takes more than there."""
    begin = rows[min(1, len(rows) - 1)]
    expected: float = begin["seconds"] + row["algorithm"] - begin["algorithm"]
    return expected


if __name__ == "__main__":
    main()
