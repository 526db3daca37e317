"""The folder of a run: where its files are, which are there, and whose they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from corsa_plugins.bench.evaluation import Evaluation, load_evaluation, save_evaluation
from corsa_plugins.bench.evaluation.storage import SUMMARY
from corsa_plugins.bench.protocols.plan import UpdatePlan, folder_name
from corsa_plugins.bench.protocols.result import ProtocolResult
from corsa_plugins.errors import CorsaError, DamagedError
from corsa_plugins.manifest import versions
from corsa_plugins.methods.effect import EFFECT, is_told
from corsa_plugins.methods.history import HISTORY, read_history
from corsa_plugins.methods.spec import REPORT
from corsa_plugins.sealed import read_sealed, write_sealed

__all__ = ["UPDATE", "ProtocolError", "RunFolder"]

UPDATE = "update.json"
"""Name of the file, in the folder of an update, with what the run itself notes of it."""

_RUN, _SUMMARY = "run.json", "summary.json"


class ProtocolError(CorsaError, ValueError):
    """A folder that holds another run, or an update that cannot be put back."""


class RunFolder:
    """The files of one run.

    Args:
        path: The folder.
        plan: Of the run.
        measures: Names of what else is asked before the first update and after the last.
        afterwards: Names of what is asked after the last update alone.
    """

    def __init__(
        self, path: Path, plan: UpdatePlan, measures: Collection[str], afterwards: Collection[str] = ()
    ) -> None:
        self.path = path
        self.plan = plan
        self.measures = measures
        self.ends = (0, len(plan.sets))
        self.asked = [(moment, name) for moment in self.ends for name in measures]
        self.asked += [(len(plan.sets), name) for name in afterwards]
        self.numbers = range(1, len(plan.sets) + 1)

    def update(self, number: int) -> Path:
        """The folder of an update, by its number from 1."""
        return self.path / "updates" / f"{number:03d}-{folder_name(self.plan.sets[number - 1].name)}"

    def evaluation(self, moment: int, name: str) -> Path:
        """The folder of a set's evaluation at a moment."""
        return self.path / "evaluations" / f"after-{moment:03d}" / folder_name(name)

    def checkpoint(self, moment: int, name: str) -> Path:
        """The file of an evaluation that is not finished."""
        return self.evaluation(moment, name).with_suffix(".unfinished")

    def measure(self, moment: int, name: str) -> Path:
        """The file of a measure at a moment."""
        return self.path / "measures" / f"after-{moment:03d}" / f"{folder_name(name)}.json"

    def has_update(self, number: int) -> bool:
        """Whether an update was finished."""
        return self.update(number).is_dir()

    def has_evaluation(self, moment: int, name: str) -> bool:
        """Whether an evaluation was finished."""
        return (self.evaluation(moment, name) / SUMMARY).is_file()

    def is_finished(self) -> bool:
        """Whether all of it is there."""
        return (
            all(self.measure(moment, name).is_file() for moment, name in self.asked)
            and all(self.has_evaluation(moment, name) for moment, name in self.plan.evaluations())
            and all(map(self.has_update, self.numbers))
        )

    def claim(self, key: dict[str, Any]) -> None:
        """Make the folder this run's, or see that it is.

        Args:
            key: All that the run's results depend on.

        Raises:
            ProtocolError: It is another run's; the message says in what they differ.
        """
        key = json.loads(json.dumps(key, default=str))  # as it is read back
        path = self.path / _RUN
        if not path.exists():
            write_sealed(path, key)
            return
        before = self.read(path)
        differing = sorted(name for name in {**before, **key} if before.get(name) != key.get(name))
        if differing:
            raise ProtocolError(
                f"{self.path} holds another run (other {', '.join(differing)}): give the same arguments to go on with "
                "it, or choose another folder"
            )
        for leftover in (self.path / "updates").glob(".*.part"):
            shutil.rmtree(leftover, ignore_errors=True)  # of a run that was killed

    def read(self, path: Path) -> dict[str, Any]:
        """A file of the run with a JSON object.

        Raises:
            ProtocolError: It is missing or damaged.
        """
        try:
            return read_sealed(path)
        except FileNotFoundError:
            raise ProtocolError(f"{path} is missing: the folder is damaged; begin in a new one") from None
        except DamagedError as error:
            raise ProtocolError(f"{error}, or begin in a new folder") from error

    def save_evaluation(self, evaluation: Evaluation, moment: int, name: str) -> None:
        """Keep a finished evaluation."""
        save_evaluation(evaluation, self.evaluation(moment, name))
        self.checkpoint(moment, name).unlink(missing_ok=True)  # what methods share is kept elsewhere

    def save_summary(self, result: ProtocolResult) -> None:
        """Write the summary of the finished run."""
        ends = {name: [_short(result.measured[moment, name]) for moment in self.ends] for name in self.measures}
        head = {"protocol": self.plan.name, "method": result.method, "measures_before_and_after": ends}
        head["versions"] = versions()
        write_sealed(self.path / _SUMMARY, {**head, **result.summary().as_dict()})

    def result(self, method: str) -> ProtocolResult:
        """What is in the folder of a finished run.

        Args:
            method: The method's name.
        """
        histories = {n: self.update(n) / HISTORY for n in self.numbers}
        reports = {n: self.update(n) / REPORT for n in self.numbers}
        return ProtocolResult(
            self.plan,
            method,
            {key: load_evaluation(self.evaluation(*key)) for key in self.plan.evaluations()},
            tuple(map(self._seconds, self.numbers)),
            {key: self.read(self.measure(*key)) for key in self.asked},
            {n: read_history(path) for n, path in histories.items() if path.is_file()},
            {n: self._report(path) for n, path in reports.items() if path.is_file()},
        )

    def _report(self, path: Path) -> dict[str, Any]:
        report = self.read(path)
        if not is_told(report.get(EFFECT)):
            raise ProtocolError(f"{path} is damaged ({EFFECT}: {report[EFFECT]!r:.60}): begin in a new folder")
        return report

    def _seconds(self, number: int) -> float:
        path = self.update(number) / UPDATE
        try:
            return float(self.read(path)["seconds"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, ProtocolError):
                raise
            raise ProtocolError(f"{path} is damaged (seconds: {error!r}): begin in a new folder") from error


def _short(measured: Any) -> Any:
    """What a summary says of a measure: its own summary, where it has one beside all its rows."""
    return measured["summary"] if isinstance(measured, dict) and "summary" in measured else measured
