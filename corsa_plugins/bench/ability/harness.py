"""lm-evaluation-harness asks a model in memory."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corsa_plugins.bench.ability.kept import HarnessFileError, KeptScores
from corsa_plugins.bench.ability.presets import with_presets
from corsa_plugins.bench.ability.scores import is_stderr
from corsa_plugins.bench.ability.tasks import data_files, find_tasks, task_digest, where_data_are
from corsa_plugins.errors import CorsaError, SettingError, require
from corsa_plugins.model.borrowing import modes_kept, random_state_kept
from corsa_plugins.model.identity import model_key
from corsa_plugins.paths import user_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Harness", "general_ability"]

logger = logging.getLogger(__name__)


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
        tasks: Names of tasks, groups or tags, patterns such as ``"mmlu_*"`` among them, or of the papers' lists
            (:data:`corsa_plugins.bench.ability.presets.PRESETS`); a string is split at commas.
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
        names = with_presets(names)
        for setting, value in (("limit", limit), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise SettingError(f"{setting} is {value}: it must be at least 1")
        if include_path is not None and not user_path(include_path).is_dir():
            raise SettingError(f"include_path {os.fspath(include_path)}: no such folder")
        for module in ("lm_eval", "datasets"):
            require(module, "eval", what="general ability")
        self.batch_size = batch_size
        self.progress = progress
        self.settings: dict[str, Any] = {
            "limit": limit,
            "num_fewshot": num_fewshot,
            "chat_template": chat_template,
            "task_files": None if include_path is None else task_digest(user_path(include_path)),
            "lm_eval": version("lm-eval"),
        }
        self._data_files = {} if include_path is None else data_files(user_path(include_path))
        self._manager, self.names = find_tasks(names, include_path)

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
        with _borrowed(model), contextlib.nullcontext() if self.progress else _no_bars():
            # It sets a padding token on a tokenizer without one.
            wrapped = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=self.batch_size)
            try:
                results: Any = simple_evaluate(
                    model=wrapped,
                    tasks=chosen,
                    task_manager=self._manager,
                    limit=self.settings["limit"],
                    num_fewshot=self.settings["num_fewshot"],
                    apply_chat_template=self.settings["chat_template"],
                    log_samples=False,
                )
            except (OSError, KeyError, ValueError) as error:
                looked = where_data_are(self._manager, chosen)
                raise CorsaError(f"lm-evaluation-harness cannot run {', '.join(chosen)}: {error}. {looked}") from error
        return {task: _numbers(metrics) for task, metrics in results["results"].items()}

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
        kept = KeptScores.read(file) if file.exists() else KeptScores()
        if kept.model != key:
            kept = KeptScores(key)
        for name in self.names:
            if kept.find(name, self.settings, self._data_files) is not None:
                logger.info("%s: scores of %s are there already", file, name)
                continue
            kept.add(name, self.settings, self._data_files, self.ask(model, tokenizer, [name]))
            kept.write(file)
        return self._all(kept)

    def read(self, path: str | os.PathLike[str]) -> dict[str, dict[str, float]]:
        """The scores of these tasks that :meth:`ask_once` kept in a file, whatever model they are of.

        Raises:
            HarnessFileError: There is no such file, it is damaged, or it does not hold all of them with these settings.
        """
        file = Path(path)
        if not file.exists():
            raise HarnessFileError(f"{file.parent} has no scores of lm-evaluation-harness ({file.name} is missing)")
        kept = KeptScores.read(file)
        for name in self.names:
            if kept.find(name, self.settings, self._data_files) is None:
                raise kept.missing(file, name, self.settings)
        return self._all(kept)

    def _all(self, kept: KeptScores) -> dict[str, dict[str, float]]:
        abilities = (kept.find(name, self.settings, self._data_files) for name in self.names)
        return {task: scores for ability in abilities for task, scores in (ability or {}).items()}


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics among the fields of a task's results, which also hold its alias and its size."""
    numbers = {
        name.removesuffix(",none"): float(value)
        for name, value in metrics.items()
        if "," in name and isinstance(value, int | float) and not isinstance(value, bool)
    }
    # of a single question there is no standard error
    return {name: value for name, value in numbers.items() if math.isfinite(value) or not is_stderr(name)}


@contextmanager
def _no_bars() -> Iterator[None]:
    """The harness has no switch for its progress bars; loggers and errors keep the stream that they have."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


@contextmanager
def _borrowed(model: PreTrainedModel) -> Iterator[None]:
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
