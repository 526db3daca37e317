"""General ability: lm-evaluation-harness on a model in memory, before and after an edit.

Needs the extra ``eval``. The tasks are the harness's own, by its names (``"mmlu"``, ``"hellaswag"``), or task files of
yours.
"""

from __future__ import annotations

import copy
import difflib
import math
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from corsa_plugins.errors import CorsaError, SettingError, require

if TYPE_CHECKING:
    from rich.table import Table
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Ability", "AbilityChange", "ability_table", "compare_ability", "general_ability"]

Ability = Mapping[str, Mapping[str, float]]
"""By task, by metric. A metric is named as the harness does without its filter ``none`` (``"acc"``,
``"exact_match,strict-match"``); beside it, its standard error as ``"acc_stderr"`` where the harness has one."""

_STDERR = "_stderr"


@dataclass(frozen=True)
class AbilityChange:
    """One metric of one task, before and after.

    Attributes:
        before: Before the edit.
        after: After it.
        difference: After minus before.
        stderr: Standard error of the difference as if the two had been asked different questions; as they are asked the
            same ones, it is an upper bound in practice. ``None`` where the harness gives no standard errors.
    """

    before: float
    after: float
    difference: float
    stderr: float | None


def general_ability(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str] | str,
    *,
    limit: int | None = None,
    batch_size: int = 16,
    num_fewshot: int | None = None,
    chat_template: bool = False,
    include_path: str | os.PathLike[str] | None = None,
) -> dict[str, dict[str, float]]:
    """Run tasks of lm-evaluation-harness on a model.

    Args:
        model: In memory, or a ``PeftModel`` with its adapter active. It is left as it was, mode included.
        tokenizer: Its tokenizer; a copy of it is used.
        tasks: Names of tasks, groups or tags, patterns such as ``"mmlu_*"`` among them; a string is split at commas.
        limit: Only the first so many questions of each task: for a quick look, not for a result.
        batch_size: Sequences per forward pass.
        num_fewshot: Examples in front of each question; by default the task's own number.
        chat_template: Ask through the tokenizer's chat template.
        include_path: A folder with task files of your own (YAML). Where all tasks are there, nothing else is read.

    Returns:
        Metrics by task; groups (``"mmlu"``) and their tasks each have an entry.

    Raises:
        MissingExtraError: lm-evaluation-harness is not installed.
        SettingError: No or unknown tasks, which are named, or a setting out of range.
        CorsaError: A task cannot be loaded, for instance because its data are not there.
    """
    names = [name.strip() for name in (tasks.split(",") if isinstance(tasks, str) else tasks) if name.strip()]
    if not names:
        raise SettingError("no tasks: name some of lm-evaluation-harness, such as mmlu,hellaswag")
    for setting, value in (("limit", limit), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise SettingError(f"{setting} is {value}: it must be at least 1")
    if include_path is not None and not Path(include_path).expanduser().is_dir():
        raise SettingError(f"include_path {os.fspath(include_path)}: no such folder")
    for module in ("lm_eval", "datasets"):
        require(module, "eval", what="general ability")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    manager, chosen = _tasks(names, include_path)
    with _as_before(model):
        # It sets a padding token on a tokenizer without one.
        wrapped = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size)
        try:
            found: Any = simple_evaluate(
                model=wrapped,
                tasks=chosen,
                task_manager=manager,
                limit=limit,
                num_fewshot=num_fewshot,
                apply_chat_template=chat_template,
                log_samples=False,
            )
        except (OSError, KeyError, ValueError) as error:
            raise CorsaError(f"lm-evaluation-harness cannot run {', '.join(names)}: {error}") from error
    return {task: _numbers(metrics) for task, metrics in found["results"].items()}


def compare_ability(before: Ability, after: Ability) -> dict[str, dict[str, AbilityChange]]:
    """What changed in each metric of each task.

    Raises:
        SettingError: The two are not of the same tasks and metrics.
    """
    tasks = [task for task in {**before, **after} if before.get(task, {}).keys() != after.get(task, {}).keys()]
    if tasks:
        raise SettingError(f"general ability before and after is not of the same metrics: {', '.join(tasks)} differ")
    return {
        task: {metric: _change(metric, before[task], after[task]) for metric in before[task] if not _is_stderr(metric)}
        for task in before
    }


def ability_table(before: Ability, after: Ability) -> Table:
    """The comparison for the terminal; standard errors of the difference behind a plus-minus."""
    from rich.table import Table

    table = Table("task", "metric", "before", "after", "difference", title="General ability (lm-evaluation-harness)")
    for task, changes in compare_ability(before, after).items():
        for metric, change in changes.items():
            error = "" if change.stderr is None else f" ± {change.stderr:.4f}"
            cells = f"{change.before:.4f}", f"{change.after:.4f}", f"{change.difference:+.4f}{error}"
            table.add_row(task, metric, *cells)
    return table


def _change(metric: str, before: Mapping[str, float], after: Mapping[str, float]) -> AbilityChange:
    errors = [one.get(_stderr_of(metric)) for one in (before, after)]
    stderr = math.hypot(*errors) if None not in errors else None  # type: ignore[arg-type]
    return AbilityChange(before[metric], after[metric], after[metric] - before[metric], stderr)


def _stderr_of(metric: str) -> str:
    name, comma, rest = metric.partition(",")
    return f"{name}{_STDERR}{comma}{rest}"


def _is_stderr(metric: str) -> bool:
    return metric.partition(",")[0].endswith(_STDERR)


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics among the fields of a task's results, which also hold its alias and its size."""
    return {
        name.removesuffix(",none"): float(value)
        for name, value in metrics.items()
        if "," in name and isinstance(value, int | float) and not isinstance(value, bool)
    }


def _tasks(names: Sequence[str], include_path: str | os.PathLike[str] | None) -> tuple[Any, list[str]]:
    """The harness's manager of tasks, and the names that the patterns match."""
    from lm_eval.tasks import TaskManager

    folder = None if include_path is None else str(Path(include_path).expanduser())
    if folder is not None:
        # Reading the index of its own thousands of tasks takes the harness many seconds.
        manager = TaskManager(include_path=folder, include_defaults=False)
        if all(manager.match_tasks([name]) for name in names):
            return manager, manager.match_tasks(list(names))
    manager = TaskManager(include_path=folder)
    unknown = [name for name in names if not manager.match_tasks([name])]
    if unknown:
        close = difflib.get_close_matches(unknown[0], manager.all_tasks, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "`lm-eval ls tasks` lists them"
        where = f", nor in {folder}" if folder else ""
        raise SettingError(f"no task {', '.join(unknown)} in lm-evaluation-harness{where}: {hint}")
    return manager, manager.match_tasks(list(names))


@contextmanager
def _as_before(model: PreTrainedModel) -> Iterator[None]:
    """The harness sets the model's mode and seeds every generator of random numbers: put all of them back."""
    import numpy

    modes = [(module, module.training) for module in model.modules()]
    states = random.getstate(), numpy.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])  # noqa: NPY002
        for module, training in modes:
            module.training = training
