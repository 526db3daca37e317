"""Tasks of lm-evaluation-harness: which names there are, and what task files of one's own hold."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from corsa_plugins.errors import SettingError
from corsa_plugins.files import sha256_of_file
from corsa_plugins.paths import user_path

__all__ = ["data_files", "find_tasks", "task_digest", "where_data_are"]


def find_tasks(names: Sequence[str], include_path: str | os.PathLike[str] | None) -> tuple[Any, list[str]]:
    """The harness's manager of tasks, and the names that the patterns match."""
    from lm_eval.tasks import TaskManager

    folder = None if include_path is None else str(user_path(include_path))
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


def where_data_are(manager: Any, names: Sequence[str]) -> str:
    """Which data sets tasks need, as far as their files say it, and where those are looked for; a sentence."""
    import datasets

    needed = []
    for name in names:
        settings = getattr(manager.task_index.get(name), "cfg", None) or {}
        parts = [str(settings[key]) for key in ("dataset_path", "dataset_name") if settings.get(key)]
        needed.append(f"{name} needs {'/'.join(parts)}" if parts else f"{name} the data of its tasks")
    offline = datasets.config.HF_HUB_OFFLINE
    hub = "the Hub is not asked (HF_HUB_OFFLINE)" if offline else f"on the Hub ({datasets.config.HF_ENDPOINT})"
    return f"{', '.join(needed)}; looked in {datasets.config.HF_DATASETS_CACHE}, {hub}"


def _matching(manager: Any, names: Sequence[str]) -> list[str]:
    """The tasks that names and patterns match, each once, in the order of the names."""
    return list(dict.fromkeys(task for name in names for task in manager.match_tasks([name])))


def task_digest(folder: Path) -> str:
    """Digest of the task files in a folder: other tasks under the same names are other tasks."""
    digest = hashlib.sha256()
    for file in _task_files(folder, ".yaml", ".yml", ".py"):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def data_files(folder: Path) -> dict[str, str]:
    """A digest of each data file that the task files in a folder name, as far as it is there."""
    digests = {}
    for file in _task_files(folder, ".yaml", ".yml"):
        for name in _DATA_FILE.findall(file.read_text(encoding="utf-8", errors="replace")):
            for path in (Path(name), folder / name):
                if path.is_file():
                    digests[str(path.absolute())] = sha256_of_file(path)[:16]
    return digests


_DATA_FILE = re.compile(r"[^\s'\"\[\]{},]+\.(?:jsonl?|csv|tsv|txt|parquet|arrow)\b")
"""As a task file names one behind ``data_files``: a path without spaces."""


def _task_files(folder: Path, *kinds: str) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in kinds and path.is_file())
