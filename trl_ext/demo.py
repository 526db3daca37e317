"""`corsa demo`: 100 facts edited on the testbed with LoRA SFT and with CoRSA, then 100 more."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from corsa_plugins.evaluation import Evaluation, evaluate, save_evaluation
from corsa_plugins.inference import cut_answer
from corsa_plugins.requests import EditRequest
from corsa_plugins.testbed import Testbed, load_testbed
from trl_ext.rounds import CORSA, LORA_SFT, Method, train_update

__all__ = ["MethodResult", "demo_table", "question_table", "run_demo", "run_method"]


@dataclass(frozen=True)
class MethodResult:
    """What a method did to the testbed.

    Attributes:
        first: round 1 (and the untouched facts) right after round 1.
        first_later: round 1 (and the untouched facts) after round 2.
        second: round 2 after round 2.
        seconds: time spent training, both rounds.
    """

    method: Method
    first: Evaluation
    first_later: Evaluation
    second: Evaluation
    seconds: float


def run_demo(output: Path, *, size: int = 100, seed: int = 0, console: Console | None = None) -> list[MethodResult]:
    """Run the demo and print its tables.

    Args:
        output: gets the adapters, one folder for each method and round, and every evaluation with its records.
        size: edits in a round.
        seed: which facts are edited to what, the adapters' initial values, and the order of the data.
    """
    console = console or _console()
    testbed = load_testbed()
    plan = testbed.world.edit_rounds(n_rounds=2, size=size, seed=seed, untouched=500)
    facts = len(testbed.world.facts)
    millions = testbed.model.num_parameters() / 1e6
    console.print(
        f"The testbed: a {millions:.1f} M-parameter Llama that knows {facts} facts of a small world, each in a "
        f"statement and in questions.\nRound 1 changes {size} of them and round 2 another {size}, on the same "
        "adapter. Training sees the statements alone; the questions are what it is asked."
    )
    results = []
    with _progress(console) as progress:
        before = evaluate(
            testbed.model, testbed.tokenizer, plan.rounds[0], label="before", untouched=plan.untouched, progress=False
        )
        save_evaluation(before, output / "before")
        for method in (LORA_SFT, CORSA):
            results.append(run_method(testbed, method, plan.rounds, plan.untouched, output, seed, progress))
    console.print(demo_table(before, results, size))
    console.print(question_table(before, results))
    console.print(f"Adapters, and every prompt with its answer: {output}/")
    return results


def run_method(
    testbed: Testbed,
    method: Method,
    rounds: Sequence[Sequence[EditRequest]],
    untouched: Sequence[EditRequest],
    output: Path,
    seed: int,
    progress: Progress,
) -> MethodResult:
    """Two updates on one adapter, measured after each."""
    model: Any = copy.deepcopy(testbed.model)
    folder = output / method.name.lower().replace(" ", "-")
    spent = 0.0
    found: dict[str, Evaluation] = {}
    for number, requests in enumerate(rounds[:2], start=1):
        task = progress.add_task(f"{method.name}, round {number}", total=1.0)
        started = time.monotonic()
        trainer = train_update(
            model,
            testbed.tokenizer,
            requests,
            method,
            folder / f"round-{number}",
            seed=seed,
            on_step=lambda share, task=task: progress.update(task, completed=share),  # type: ignore[misc]
        )
        spent += time.monotonic() - started
        model = trainer.model
        asked = {"first": rounds[0]} if number == 1 else {"first_later": rounds[0], "second": rounds[1]}
        for name, questions in asked.items():
            found[name] = evaluate(
                model,
                testbed.tokenizer,
                questions,
                label=f"{method.name}, {_MOMENTS[name]}",
                untouched=untouched if name != "second" else None,
                progress=False,
            )
            save_evaluation(found[name], folder / f"evaluation-{name.replace('_', '-')}")
    return MethodResult(method, **found, seconds=spent)


_MOMENTS = {
    "first": "round 1 right after it",
    "first_later": "round 1 after round 2",
    "second": "round 2 right after it",
}


def demo_table(before: Evaluation, results: Sequence[MethodResult], size: int) -> Table:
    """A row for each metric and moment, a column for each method; percentages with their 95 % intervals."""
    table = Table(title=f"{size} edits, then {size} more (percent, with 95 % intervals over requests)", title_style="")
    table.add_column("")
    for name in ("before", *(result.method.name for result in results)):
        table.add_column(name, justify="right")
    rows: list[tuple[str, str, str]] = [
        ("Right after round 1", "", ""),
        ("  efficacy: the edited statement gives the new answer", "first", "efficacy"),
        ("  generality: questions give the new answer", "first", "generality"),
        ("  old-knowledge retention: questions give the old one", "first", "old_retention"),
        ("  specificity: untouched facts still right", "first", "untouched"),
        ("After round 2", "", ""),
        ("  generality of round 2", "second", "generality"),
        ("  generality of round 1", "first_later", "generality"),
        ("  old-knowledge activation: round 1's old answers", "first_later", "old_retention"),
        ("  specificity: untouched facts still right", "first_later", "untouched"),
    ]
    for title, moment, metric in rows:
        if not moment:
            table.add_row(f"[bold]{title}[/bold]")
            continue
        start = _percent(before, metric) if moment == "first" else ""
        table.add_row(title, start, *(_percent(getattr(result, moment), metric) for result in results))
    table.add_row("Training time", "", *(f"{result.seconds:.0f} s" for result in results))
    return table


def question_table(before: Evaluation, results: Sequence[MethodResult], count: int = 3) -> Table:
    """A few questions with the answers before and after round 1: the first of the file, whatever came of them."""
    table = Table(title="Questions that training did not see, right after round 1", title_style="", show_lines=True)
    for name in ("question", "new answer wanted", "before", *(result.method.name for result in results)):
        table.add_column(name)
    for index in range(min(count, len(before.records))):
        record = before.records[index]
        # A different form of question in each row.
        form = index % len(record.paraphrases)
        answers = [_said(evaluation, index, form) for evaluation in (before, *(result.first for result in results))]
        table.add_row(record.paraphrases[form].prompt, record.target_new, *answers)
    return table


def _said(evaluation: Evaluation, index: int, form: int) -> str:
    return cut_answer(evaluation.records[index].paraphrases[form].output).strip()


def _percent(evaluation: Evaluation, metric: str) -> str:
    found = evaluation.summary().get(metric)
    if found is None:
        return ""
    return f"{100 * found.mean:.1f} [{100 * found.low:.0f}, {100 * found.high:.0f}]"


def _console() -> Console:
    console = Console()
    # Where output goes to a file there is no width to keep to.
    return console if console.is_terminal else Console(width=140)


def _progress(console: Console) -> Progress:
    return Progress(TextColumn("{task.description:<20}"), BarColumn(), TimeElapsedColumn(), console=console)
