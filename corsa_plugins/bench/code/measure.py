"""UPass and SPass of a model: it writes, what it wrote is run, and what is done is kept."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from corsa_plugins.bench.code.answering import Sampling, write_answers
from corsa_plugins.bench.code.results import CodeResult, Judged
from corsa_plugins.bench.code.running import judge
from corsa_plugins.bench.code.tasks import CodeTask
from corsa_plugins.errors import SettingError
from corsa_plugins.journal import Journal
from corsa_plugins.model.identity import model_key
from corsa_plugins.sandbox import Sandbox

__all__ = ["ANSWERS", "check_references", "measure_code"]

ANSWERS = "answers.jsonl"
"""What was written and what came of it, a problem a line, in the folder of a measurement."""


def measure_code(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[CodeTask],
    sampling: Sampling,
    sandbox: Sandbox,
    *,
    label: str,
    folder: str | os.PathLike[str],
    jobs: int = 1,
    progress: bool = False,
) -> CodeResult:
    """Sample answers to programming problems, and run them.

    The same call goes on where one was stopped.

    Args:
        model: A causal language model; a ``PeftModel`` writes with its active adapter.
        tokenizer: Its tokenizer.
        tasks: What is asked.
        sampling: How answers are written.
        sandbox: What their programs run in.
        label: What to call the model.
        folder: Where answers and verdicts are kept, in :data:`ANSWERS`.
        jobs: How many programs run at once.
        progress: Show a progress bar.

    Raises:
        SettingError: There are no tasks, or two of one name.
        OtherWorkError: The folder has answers of another model, other problems or other settings.
        SandboxError: A sandbox cannot be made.
    """
    _check(tasks)
    asked, problems = model_key(model, tokenizer), _digest(tasks)
    head = {
        "code of": {**asked, "dtype": str(model.dtype)},
        "problems": problems,
        "sampling": asdict(sampling),
        "sandbox": {**asdict(sandbox.limits), "unenforced": sorted(name.value for name in sandbox.unenforced)},
    }
    with Journal(Path(folder) / ANSWERS, head) as kept, ThreadPoolExecutor(jobs) as pool:
        for task in tqdm(tasks[len(kept.items) :], desc=label, unit="problem", disable=not progress, leave=False):
            answers = write_answers(model, tokenizer, task, sampling)
            kept.append(_judged(task, answers, sandbox, pool))
        rows = [Judged.read(row) for row in kept.items]
    inputs = {**asked, "problems": problems}
    return CodeResult(label, tuple(rows), asdict(sampling), tuple(name.value for name in sandbox.unenforced), inputs)


def check_references(
    tasks: Sequence[CodeTask], sandbox: Sandbox, *, jobs: int = 1, progress: bool = False
) -> CodeResult:
    """Run the problems' own solutions: what fails there no model can pass here, for want of a package or of another
    version of it.

    Raises:
        SettingError: There are no tasks, or two of one name.
        SandboxError: A sandbox cannot be made.
    """
    _check(tasks)
    with ThreadPoolExecutor(jobs) as pool:
        verdicts = pool.map(lambda task: judge(task, task.reference, sandbox), tasks)
        bar = tqdm(verdicts, total=len(tasks), desc="references", disable=not progress, leave=False)
        rows = tuple(
            Judged(task.kind, task.task_id, task.trained, (task.reference,), (verdict,))
            for task, verdict in zip(tasks, bar, strict=True)
        )
    return CodeResult("the problems' own solutions", rows, {}, tuple(name.value for name in sandbox.unenforced))


def _judged(task: CodeTask, answers: Sequence[str], sandbox: Sandbox, pool: ThreadPoolExecutor) -> dict[str, Any]:
    """Each different answer is run once."""
    different = list(dict.fromkeys(answers))
    verdicts = dict(zip(different, pool.map(lambda answer: judge(task, answer, sandbox), different), strict=True))
    return Judged(
        task.kind, task.task_id, task.trained, tuple(answers), tuple(verdicts[answer] for answer in answers)
    ).plain()


def _check(tasks: Sequence[CodeTask]) -> None:
    if not tasks:
        raise SettingError("there are no problems to ask: give --problems, --humaneval or both")
    seen: set[tuple[str, str]] = set()
    for task in tasks:
        if (task.kind, task.task_id) in seen:
            raise SettingError(f"two problems are called {task.task_id!r}: give each a name of its own")
        seen.add((task.kind, task.task_id))


def _digest(tasks: Sequence[CodeTask]) -> str:
    text = json.dumps([asdict(task) for task in tasks], sort_keys=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]
