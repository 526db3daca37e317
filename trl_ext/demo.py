"""`corsa demo`: 100 facts edited on the testbed with LoRA SFT and with CoRSA, then 100 more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from corsa_plugins.evaluation import Evaluation, evaluate, save_evaluation
from corsa_plugins.inference import cut_answer
from corsa_plugins.testbed import load_testbed
from trl_ext.rounds import CORSA, LORA_SFT, Job, JobResult, run_jobs

__all__ = ["demo_table", "question_table", "run_demo"]


def run_demo(output: Path, *, size: int = 100, seed: int = 0, console: Console | None = None) -> list[JobResult]:
    """Run the demo and print its tables.

    Args:
        output: gets the adapters, one folder for each method and round, and every evaluation with its records.
        size: edits in a round.
        seed: which facts are edited to what, the adapters' initial values, and the order of the data.
    """
    console = console or _console()
    disable_progress_bar()  # of loading weights
    testbed = load_testbed()
    plan = testbed.world.edit_rounds(n_rounds=2, size=size, seed=seed, untouched=500)
    millions = testbed.model.num_parameters() / 1e6
    console.print(
        f"The testbed: a {millions:.1f} M-parameter Llama that knows {len(testbed.world.facts)} facts of a small "
        f"world, each in a statement and in questions.\nRound 1 changes {size} of them and round 2 another {size}, on "
        "the same adapter. Training sees the statements alone; the questions are what it is asked."
    )
    jobs = [Job(method, seed, size, output / method.folder) for method in (LORA_SFT, CORSA)]
    with Progress(
        TextColumn("{task.description:<10}"), BarColumn(), TextColumn("{task.fields[doing]:<14}"), TimeElapsedColumn(),
        console=console,
    ) as progress:  # fmt: skip
        bars = {job.method.name: progress.add_task(job.method.name, total=1.0, doing="") for job in jobs}

        def report(job: Job, share: float, doing: str) -> None:
            progress.update(bars[job.method.name], completed=share, doing=doing)

        by_name = {result.job.method.name: result for result in run_jobs(jobs, report)}
    results = [by_name[job.method.name] for job in jobs]
    before = evaluate(
        testbed.model, testbed.tokenizer, plan.rounds[0], label="before", untouched=plan.untouched, progress=False
    )
    save_evaluation(before, output / "before")
    console.print(demo_table(before, results, size))
    console.print(question_table(before, results))
    console.print(f"Adapters, and every prompt with its answer: {output}/")
    return results


def demo_table(before: Evaluation, results: Sequence[JobResult], size: int) -> Table:
    """A row for each metric and moment, a column for each method; percentages with their 95 % intervals."""
    table = Table(title=f"{size} edits, then {size} more (percent, with 95 % intervals over requests)", title_style="")
    table.add_column("")
    for name in ("before", *(result.job.method.name for result in results)):
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


def question_table(before: Evaluation, results: Sequence[JobResult], count: int = 3) -> Table:
    """A few questions with the answers before and after round 1: the first of the file, whatever came of them."""
    table = Table(title="Questions that training did not see, right after round 1", title_style="", show_lines=True)
    for name in ("question", "new answer wanted", "before", *(result.job.method.name for result in results)):
        table.add_column(name)
    for index in range(min(count, len(before.records))):
        record = before.records[index]
        # A different form of question in each row.
        form = index % len(record.paraphrases)
        answers = [_said(evaluation, index, form) for evaluation in (before, *(result.first for result in results))]
        table.add_row(record.paraphrases[form].prompt, record.target_new, *answers)
    return table


def _said(evaluation: Evaluation, index: int, form: int) -> str:
    return cut_answer(evaluation.records[index].paraphrases[form].output) or "(nothing)"


def _percent(evaluation: Evaluation, metric: str) -> str:
    found = evaluation.summary().get(metric)
    if found is None:
        return ""
    return f"{100 * found.mean:.1f} [{100 * found.low:.0f}, {100 * found.high:.0f}]"


def _console() -> Console:
    console = Console()
    # Where output goes to a file there is no width to keep to.
    return console if console.is_terminal else Console(width=140)
