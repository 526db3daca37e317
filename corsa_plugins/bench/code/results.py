"""What came of a measurement on code: UPass and SPass, in a file and as a table."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corsa_plugins.bench.code.passes import pass_at_k
from corsa_plugins.bench.code.running import Verdict
from corsa_plugins.bench.code.tasks import SPECIFICITY, UPDATE
from corsa_plugins.bench.evaluation.intervals import Interval, bootstrap_mean
from corsa_plugins.manifest import versions
from corsa_plugins.sealed import write_sealed

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["CODE", "CodeFigures", "CodeResult", "Judged", "MeasureFigures"]

CODE = "code.json"
"""The figures, in the folder of a measurement."""

_NAMES = {UPDATE: "UPass", SPECIFICITY: "SPass"}


@dataclass(frozen=True)
class Judged:
    """A problem, what was written for it, and what came of it."""

    kind: str
    task_id: str
    trained: bool
    answers: tuple[str, ...]
    verdicts: tuple[Verdict, ...]

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> Judged:
        """From JSON values."""
        verdicts = tuple(Verdict(**verdict) for verdict in row["verdicts"])
        return cls(row["kind"], row["task_id"], row["trained"], tuple(row["answers"]), verdicts)


@dataclass(frozen=True)
class MeasureFigures:
    """One measure of a model.

    Attributes:
        problems: How many.
        passes: pass@k by k, the mean over problems with its interval.
        answers: How many answers came to what.
    """

    problems: int
    passes: Mapping[int, Interval]
    answers: Mapping[str, int]


@dataclass(frozen=True)
class CodeFigures:
    """What :data:`CODE` holds.

    Attributes:
        label: What the model is called.
        measures: Its figures by measure (:meth:`CodeResult.groups`).
        sampling: How answers were written; empty of the problems' own solutions.
        unenforced: Promises of the sandbox that were done without.
    """

    label: str
    measures: Mapping[str, MeasureFigures]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    unenforced: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CodeFigures:
        """From JSON values.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: They are something else.
        """
        measures = {
            str(name): MeasureFigures(
                int(one["problems"]),
                {int(k): Interval(**interval) for k, interval in one["pass@k"].items()},
                {str(what): int(count) for what, count in one["answers"].items()},
            )
            for name, one in data["figures"].items()
        }
        return cls(str(data["label"]), measures, dict(data["sampling"]), tuple(map(str, data["unenforced"])))


@dataclass(frozen=True)
class CodeResult:
    """What came of a measurement.

    Attributes:
        label: What the model is called.
        problems: In the order in which they were asked.
        sampling: How answers were written.
        unenforced: Promises of the sandbox that were done without.
        inputs: Digests of what was asked and of whom: ``model``, ``tokenizer``, ``problems``.
    """

    label: str
    problems: tuple[Judged, ...]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    unenforced: tuple[str, ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)

    def groups(self) -> dict[str, list[Judged]]:
        """By measure: UPass, that on problems that were trained on, and SPass; those that there are."""
        found = {
            "UPass": [each for each in self.problems if each.kind == UPDATE and not each.trained],
            "UPass (trained on)": [each for each in self.problems if each.kind == UPDATE and each.trained],
            "SPass": [each for each in self.problems if each.kind == SPECIFICITY],
        }
        return {name: problems for name, problems in found.items() if problems}

    def passes(self, k: int) -> dict[str, Interval]:
        """pass@k of each measure, the mean over its problems with a bootstrap interval.

        Raises:
            SettingError: There are fewer samples than ``k``.
        """
        return {
            name: bootstrap_mean(
                [pass_at_k(len(each.verdicts), sum(one.passed for one in each.verdicts), k) for each in problems]
            )
            for name, problems in self.groups().items()
        }

    def outcomes(self) -> dict[str, dict[str, int]]:
        """How many answers came to what, by measure."""
        return {
            name: dict(Counter(one.what for each in problems for one in each.verdicts).most_common())
            for name, problems in self.groups().items()
        }

    def save(self, folder: str | os.PathLike[str], ks: Sequence[int], asked: Mapping[str, Any]) -> None:
        """Write the figures, and what they were made by and of, to :data:`CODE`, whole or not at all."""
        passes = {str(k): self.passes(k) for k in ks}
        figures = {
            name: {
                "problems": len(problems),
                "pass@k": {k: by_name[name]._asdict() for k, by_name in passes.items()},
                "answers": self.outcomes()[name],
            }
            for name, problems in self.groups().items()
        }
        content = {
            "label": self.label,
            "figures": figures,
            "sampling": dict(self.sampling),
            "unenforced": list(self.unenforced),
            "asked": dict(asked),
            "inputs": dict(self.inputs),
            "versions": versions(),
        }
        write_sealed(Path(folder) / CODE, content)

    def table(self, ks: Sequence[int]) -> Table:
        """For the terminal: a row a measure."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(f"Code: {self.label}"))
        table.caption = "pass@k in percent, mean over problems and 95% interval"
        for index, heading in enumerate(("", *(f"pass@{k}" for k in ks), "problems", "answers")):
            table.add_column(heading, justify="left" if index in (0, len(ks) + 2) else "right")
        shown = [self.passes(k) for k in ks]
        for name, problems in self.groups().items():
            cells = [f"{100 * p[name].mean:.1f} [{100 * p[name].low:.1f}, {100 * p[name].high:.1f}]" for p in shown]
            came_to = ", ".join(f"{count} {what}" for what, count in self.outcomes()[name].items())
            table.add_row(name, *cells, str(len(problems)), came_to)
        return table
