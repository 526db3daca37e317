"""Scores in a file: what a model was asked already is not asked again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corsa_plugins.bench.ability.scores import Ability, plain_ability, read_ability
from corsa_plugins.errors import CorsaError
from corsa_plugins.files import atomic_write_text
from corsa_plugins.parsing import json_value

__all__ = ["HarnessFileError", "KeptScores", "load_ability"]


class HarnessFileError(CorsaError, ValueError):
    """A file of kept scores that is damaged, or does not hold the scores wanted."""


@dataclass
class KeptScores:
    """What one model was asked.

    Attributes:
        model: Which model, as :func:`corsa_plugins.model.identity.model_key` gives it; ``None``: that is not known.
        rows: By task, with what its scores depend on: ``task``, ``settings``, ``data_files`` and ``scores``.
    """

    model: Any = None
    rows: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> KeptScores:
        """Those of a file.

        Raises:
            HarnessFileError: It is no such file.
        """
        try:
            data = json_value(path.read_text(encoding="utf-8"))
            rows = [
                {
                    "task": str(row["task"]),
                    "settings": dict(row["settings"]),
                    "data_files": dict(row.get("data_files", {})),
                    "scores": read_ability(row["scores"]),
                }
                for row in data["asked"]
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise HarnessFileError(
                f"{path} holds no scores of lm-evaluation-harness ({error!r}): move it away"
            ) from error
        return cls(data.get("model"), rows)

    def write(self, path: Path) -> None:
        """Into a file, whole or not at all.

        Raises:
            OSError: It cannot be written.
        """
        plain = [{**row, "scores": plain_ability(row["scores"])} for row in self.rows]
        atomic_write_text(path, json.dumps({"model": self.model, "asked": plain}, indent=2) + "\n")

    def find(
        self, task: str, settings: Mapping[str, Any], data_files: Mapping[str, str]
    ) -> dict[str, dict[str, float]] | None:
        """The scores of a task asked with these settings, of which no data file is another one now.

        Files that are gone were once the same.
        """
        scores = [
            row["scores"]
            for row in self.rows
            if row["task"] == task
            and row["settings"] == settings
            and all(row["data_files"].get(path, digest) == digest for path, digest in data_files.items())
        ]
        return scores[-1] if scores else None

    def add(self, task: str, settings: Mapping[str, Any], data_files: Mapping[str, str], scores: Ability) -> None:
        """What a task gave."""
        row = {"task": task, "settings": dict(settings), "data_files": dict(data_files), "scores": scores}
        self.rows.append(row)

    def missing(self, path: Path, task: str, settings: Mapping[str, Any]) -> HarnessFileError:
        """Says why a task's scores, which are wanted with these settings, are not those in the file."""
        others = [row["settings"] for row in self.rows if row["task"] == task]
        if settings in others:
            return HarnessFileError(f"{path} has scores of {task} from before its data files were changed")
        if not others:
            had = ", ".join(dict.fromkeys(row["task"] for row in self.rows)) or "nothing"
            return HarnessFileError(f"{path} has no scores of {task}; it has {had}")
        last = others[-1]
        differing = [name for name in {**settings, **last} if settings.get(name) != last.get(name)]
        said = ", ".join(f"{name} {last.get(name)} instead of {settings.get(name)}" for name in differing)
        return HarnessFileError(f"{path} has scores of {task} that were asked with {said}")


def load_ability(path: str | os.PathLike[str]) -> dict[str, dict[str, float]]:
    """All scores in a file of :meth:`~corsa_plugins.bench.ability.harness.Harness.ask_once`; of a task asked twice with
    other settings, the last.

    Raises:
        HarnessFileError: It is no such file.
    """
    return {task: scores for row in KeptScores.read(Path(path)).rows for task, scores in row["scores"].items()}
