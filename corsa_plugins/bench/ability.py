"""General ability: lm-evaluation-harness on a model in memory, before and after an edit.

Needs the extra ``eval``. The tasks are the harness's own, by its names (``"mmlu"``, ``"hellaswag"``), or task files of
yours. What was asked can be kept in a file, and is not asked again: the harness may take hours.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corsa_plugins.errors import CorsaError, SettingError, require
from corsa_plugins.files import atomic_write_text, sha256_of_file
from corsa_plugins.model.borrowing import modes_kept, random_state_kept
from corsa_plugins.model.identity import model_key

if TYPE_CHECKING:
    from rich.table import Table
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "Ability",
    "AbilityChange",
    "Harness",
    "HarnessFileError",
    "ability_change",
    "ability_summary",
    "ability_table",
    "compare_ability",
    "general_ability",
    "is_stderr",
    "load_ability",
    "plain_ability",
    "read_ability",
    "stderr_of",
]

logger = logging.getLogger(__name__)

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


class HarnessFileError(CorsaError, ValueError):
    """A file of kept scores that is damaged, or does not hold the scores wanted."""


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
    harness = Harness(
        tasks,
        limit=limit,
        batch_size=batch_size,
        num_fewshot=num_fewshot,
        chat_template=chat_template,
        include_path=include_path,
    )
    return harness.ask(model, tokenizer)


class Harness:
    """Tasks of the harness, found before any model is there, to be asked of one model after the other.

    Args:
        tasks, limit, batch_size, num_fewshot, chat_template, include_path: As for :func:`general_ability`.
        progress: Leave the harness its progress bars.

    Attributes:
        names: The tasks, groups and tags that were named or that patterns match.
        settings: What scores depend on besides the model.

    Raises:
        MissingExtraError, SettingError: As for :func:`general_ability`.
    """

    def __init__(
        self,
        tasks: Sequence[str] | str,
        *,
        limit: int | None = None,
        batch_size: int = 16,
        num_fewshot: int | None = None,
        chat_template: bool = False,
        include_path: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> None:
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
        self.batch_size = batch_size
        self.progress = progress
        self.settings: dict[str, Any] = {
            "limit": limit,
            "num_fewshot": num_fewshot,
            "chat_template": chat_template,
            "task_files": None if include_path is None else _digest(Path(include_path).expanduser()),
            "lm_eval": version("lm-eval"),
        }
        self._data_files = {} if include_path is None else _data_files(Path(include_path).expanduser())
        self._manager, self.names = _tasks(names, include_path)

    @property
    def key(self) -> str:
        """Tells what is asked from anything else that could be: tasks, settings, task files and data files."""
        told = json.dumps([self.names, self.settings, sorted(self._data_files.values())], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:8]

    def ask(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, names: Sequence[str] | None = None
    ) -> dict[str, dict[str, float]]:
        """Run the tasks on a model, by default all; see :func:`general_ability`.

        Raises:
            CorsaError: A task cannot be loaded, for instance because its data are not there.
        """
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        chosen = list(self.names if names is None else names)
        with _as_before(model), contextlib.nullcontext() if self.progress else _no_bars():
            # It sets a padding token on a tokenizer without one.
            wrapped = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=self.batch_size)
            try:
                found: Any = simple_evaluate(
                    model=wrapped,
                    tasks=chosen,
                    task_manager=self._manager,
                    limit=self.settings["limit"],
                    num_fewshot=self.settings["num_fewshot"],
                    apply_chat_template=self.settings["chat_template"],
                    log_samples=False,
                )
            except (OSError, KeyError, ValueError) as error:
                raise CorsaError(f"lm-evaluation-harness cannot run {', '.join(chosen)}: {error}") from error
        return {task: _numbers(metrics) for task, metrics in found["results"].items()}

    def ask_once(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str | os.PathLike[str]
    ) -> dict[str, dict[str, float]]:
        """Run the tasks one by one, and keep the scores of each in a file as soon as it is done.

        What the file has of this very model, asked with these very settings, is not asked again; scores of another
        model leave it.

        Args:
            model: As for :meth:`ask`.
            tokenizer: Likewise.
            path: JSON, made with its folder if it is not there; written whole or not at all.

        Raises:
            HarnessFileError: The file is damaged.
            CorsaError: As for :meth:`ask`.
        """
        file, key = Path(path), model_key(model, tokenizer)
        kept = _read_kept(file) if file.exists() else {}
        rows: list[dict[str, Any]] = kept["asked"] if kept.get("model") == key else []
        for name in self.names:
            if self._find(rows, name) is not None:
                logger.info("%s: scores of %s are there already", file, name)
                continue
            row = {"task": name, "settings": self.settings, "data_files": self._data_files}
            rows.append({**row, "scores": self.ask(model, tokenizer, [name])})
            plain = [{**row, "scores": plain_ability(row["scores"])} for row in rows]
            atomic_write_text(file, json.dumps({"model": key, "asked": plain}, indent=2) + "\n")
        return self._all(rows)

    def read(self, path: str | os.PathLike[str]) -> dict[str, dict[str, float]]:
        """The scores of these tasks that :meth:`ask_once` kept in a file, whatever model they are of.

        Raises:
            HarnessFileError: There is no such file, it is damaged, or it does not hold all of them with these settings.
        """
        file = Path(path)
        if not file.exists():
            raise HarnessFileError(f"{file.parent} has no scores of lm-evaluation-harness ({file.name} is missing)")
        rows = _read_kept(file)["asked"]
        for name in self.names:
            if self._find(rows, name) is None:
                others = [row["settings"] for row in rows if row["task"] == name]
                if self.settings in others:
                    raise HarnessFileError(f"{file} has scores of {name} from before its data files were changed")
                if not others:
                    had = ", ".join(dict.fromkeys(row["task"] for row in rows)) or "nothing"
                    raise HarnessFileError(f"{file} has no scores of {name}; it has {had}")
                differ = [k for k in {**self.settings, **others[-1]} if self.settings.get(k) != others[-1].get(k)]
                said = ", ".join(f"{k} {others[-1].get(k)} instead of {self.settings.get(k)}" for k in differ)
                raise HarnessFileError(f"{file} has scores of {name} that were asked with {said}")
        return self._all(rows)

    def _find(self, rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, dict[str, float]] | None:
        found = [
            row["scores"]
            for row in rows
            if row["task"] == name and row["settings"] == self.settings and self._same_data(row["data_files"])
        ]
        return found[-1] if found else None

    def _same_data(self, then: Mapping[str, str]) -> bool:
        """Whether no data file is another one now; files that are gone were once the same."""
        return all(then.get(path, digest) == digest for path, digest in self._data_files.items())

    def _all(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
        return {task: scores for name in self.names for task, scores in (self._find(rows, name) or {}).items()}


def load_ability(path: str | os.PathLike[str]) -> dict[str, dict[str, float]]:
    """All scores in a file of :meth:`Harness.ask_once`; of a task asked twice with other settings, the last.

    Raises:
        HarnessFileError: It is no such file.
    """
    return {task: scores for row in _read_kept(Path(path))["asked"] for task, scores in row["scores"].items()}


def plain_ability(ability: Ability) -> dict[str, dict[str, Any]]:
    """Plain data for strict JSON: a score that is no finite number is written as text."""
    return {
        task: {name: value if math.isfinite(value) else str(value) for name, value in scores.items()}
        for task, scores in ability.items()
    }


def read_ability(data: Any) -> dict[str, dict[str, float]]:
    """The scores of :func:`plain_ability`'s data.

    Raises:
        ValueError, TypeError, AttributeError: The data are something else.
    """
    return {task: {name: float(value) for name, value in scores.items()} for task, scores in data.items()}


def _read_kept(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            {
                "task": str(row["task"]),
                "settings": dict(row["settings"]),
                "data_files": dict(row.get("data_files", {})),
                "scores": read_ability(row["scores"]),
            }
            for row in found["asked"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HarnessFileError(f"{path} holds no scores of lm-evaluation-harness ({error!r}): move it away") from error
    return {"model": found.get("model"), "asked": rows}


def _digest(folder: Path) -> str:
    """Of the task files in a folder: other tasks under the same names are other tasks."""
    digest = hashlib.sha256()
    for file in _task_files(folder, ".yaml", ".yml", ".py"):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _data_files(folder: Path) -> dict[str, str]:
    """A digest of each data file that the task files in a folder name, as far as it is there."""
    found = {}
    for file in _task_files(folder, ".yaml", ".yml"):
        for name in _DATA_FILE.findall(file.read_text(encoding="utf-8", errors="replace")):
            for path in (Path(name), folder / name):
                if path.is_file():
                    found[str(path.absolute())] = sha256_of_file(path)[:16]
    return found


_DATA_FILE = re.compile(r"[^\s'\"\[\]{},]+\.(?:jsonl?|csv|tsv|txt|parquet|arrow)\b")
"""As a task file names one behind ``data_files``: a path without spaces."""


def _task_files(folder: Path, *kinds: str) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in kinds and path.is_file())


def compare_ability(before: Ability, after: Ability) -> dict[str, dict[str, AbilityChange]]:
    """What changed in each metric of each task.

    Raises:
        SettingError: The two are not of the same tasks and metrics.
    """
    tasks = [task for task in {**before, **after} if before.get(task, {}).keys() != after.get(task, {}).keys()]
    if tasks:
        raise SettingError(f"general ability before and after is not of the same metrics: {', '.join(tasks)} differ")
    return {
        task: {
            metric: ability_change(
                before[task][metric],
                after[task][metric],
                before[task].get(stderr_of(metric)),
                after[task].get(stderr_of(metric)),
            )
            for metric in before[task]
            if not is_stderr(metric)
        }
        for task in before
    }


def ability_change(
    before: float, after: float, before_stderr: float | None, after_stderr: float | None
) -> AbilityChange:
    """The difference of two scores; its standard error is the root of the sum of the squares of theirs."""
    known = before_stderr is not None and after_stderr is not None
    stderr = math.hypot(before_stderr, after_stderr) if known else None  # type: ignore[arg-type]
    return AbilityChange(before, after, after - before, stderr)


def ability_summary(after: Ability, before: Ability | None = None, baseline: str | None = None) -> dict[str, Any]:
    """What a summary says of general ability, as plain data for strict JSON.

    Args:
        after: The scores reported on, under ``scores``.
        before: What to compare them with, under ``baseline_scores``; ``change`` has every difference.
        baseline: What is compared with, in words.
    """
    found: dict[str, Any] = {"scores": plain_ability(after)}
    if before is not None:
        changes = {
            task: plain_ability({metric: _without_none(asdict(change)) for metric, change in metrics.items()})
            for task, metrics in compare_ability(before, after).items()
        }
        found |= {"baseline": baseline, "baseline_scores": plain_ability(before), "change": changes}
    return found


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def ability_table(before: Ability | None, after: Ability, labels: tuple[str, str] = ("before", "after")) -> Table:
    """Scores for the terminal; with those from before, the comparison, standard errors behind a plus-minus.

    Args:
        before: ``None`` if there is nothing to compare with.
        after: The scores reported on.
        labels: Headings of the two.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(title="General ability (lm-evaluation-harness)")
    if before is not None:
        table.caption = "± standard error, as if the two had been asked different questions"
    headings = ["task", "metric", *labels, "difference"] if before is not None else ["task", "metric", labels[1]]
    for place, heading in enumerate(headings):
        table.add_column(Text(heading), justify="left" if place < 2 else "right")
    if before is None:
        for task, scores in after.items():
            for metric in filter(lambda name: not is_stderr(name), scores):
                table.add_row(task, metric, _with_error(f"{scores[metric]:.4f}", scores.get(stderr_of(metric))))
        return table
    for task, changes in compare_ability(before, after).items():
        for metric, change in changes.items():
            difference = _with_error(f"{change.difference:+.4f}", change.stderr)
            table.add_row(task, metric, f"{change.before:.4f}", f"{change.after:.4f}", difference)
    return table


def _with_error(shown: str, stderr: float | None) -> str:
    return shown if stderr is None else f"{shown} ± {stderr:.4f}"


def stderr_of(metric: str) -> str:
    """Under which name the standard error of a metric is."""
    name, comma, rest = metric.partition(",")
    return f"{name}{_STDERR}{comma}{rest}"


def is_stderr(metric: str) -> bool:
    """Whether this is the name of a standard error."""
    return metric.partition(",")[0].endswith(_STDERR)


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics among the fields of a task's results, which also hold its alias and its size."""
    found = {
        name.removesuffix(",none"): float(value)
        for name, value in metrics.items()
        if "," in name and isinstance(value, int | float) and not isinstance(value, bool)
    }
    # of a single question there is no standard error
    return {name: value for name, value in found.items() if math.isfinite(value) or not is_stderr(name)}


def _tasks(names: Sequence[str], include_path: str | os.PathLike[str] | None) -> tuple[Any, list[str]]:
    """The harness's manager of tasks, and the names that the patterns match."""
    from lm_eval.tasks import TaskManager

    folder = None if include_path is None else str(Path(include_path).expanduser())
    if folder is not None:
        # Reading the index of its own thousands of tasks takes the harness many seconds.
        manager = TaskManager(include_path=folder, include_defaults=False)
        if all(manager.match_tasks([name]) for name in names):
            return manager, _matching(manager, names)
    manager = TaskManager(include_path=folder)
    unknown = [name for name in names if not manager.match_tasks([name])]
    if unknown:
        close = difflib.get_close_matches(unknown[0], manager.all_tasks, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "`lm-eval ls tasks` lists them"
        where = f", nor in {folder}" if folder else ""
        raise SettingError(f"no task {', '.join(unknown)} in lm-evaluation-harness{where}: {hint}")
    return manager, _matching(manager, names)


def _matching(manager: Any, names: Sequence[str]) -> list[str]:
    """The tasks that names and patterns match, each once, in the order of the names."""
    return list(dict.fromkeys(task for name in names for task in manager.match_tasks([name])))


@contextmanager
def _no_bars() -> Iterator[None]:
    """The harness has no switch for its progress bars; loggers and errors keep the stream that they have."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


@contextmanager
def _as_before(model: PreTrainedModel) -> Iterator[None]:
    """The harness sets the model's mode and seeds every generator of random numbers: put all of them back."""
    # It warns that options for loading a model are of no use for one that is loaded.
    talker = logging.getLogger("lm_eval.models.huggingface")
    level = talker.level
    talker.setLevel(logging.ERROR)
    try:
        with modes_kept(model), random_state_kept():
            yield
    finally:
        talker.setLevel(level)
