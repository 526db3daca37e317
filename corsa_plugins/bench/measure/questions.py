"""What every model is asked alike, and what it gave."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corsa_plugins.bench.ability import Ability, Harness, HarnessFileError, plain_ability
from corsa_plugins.bench.evaluation import Evaluation, ReportError, evaluate
from corsa_plugins.bench.evaluation.same_questions import check_asked
from corsa_plugins.bench.evaluation.storage import SUMMARY
from corsa_plugins.data.requests import EditRequest, Probe
from corsa_plugins.errors import SettingError
from corsa_plugins.model.processes import ALONE, Processes
from corsa_plugins.parsing import json_value
from corsa_plugins.paths import user_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["BASELINE", "HARNESS", "UNFINISHED", "Measured", "Questions"]

BASELINE = "baseline"
"""The folder of the baseline, in that of the results."""

HARNESS = "harness.json"
UNFINISHED = "unfinished.jsonl"


@dataclass(frozen=True)
class Measured:
    """What one model gave.

    Attributes:
        evaluation: Its answers; empty where it was asked nothing.
        ability: Its scores, where the harness was asked for.
    """

    evaluation: Evaluation
    ability: Ability | None = None


@dataclass(frozen=True)
class Questions:
    """All that is asked, of every model alike.

    Attributes:
        requests, untouched, max_new_tokens, fluency_tokens, chat_template, batch_size, progress: As for
            :func:`~corsa_plugins.bench.evaluation.evaluate`.
        harness: Tasks of lm-evaluation-harness, to be asked too.
        processes: That share the questions; the first one writes.

    Raises:
        SettingError: There is nothing among them, or several processes and the harness, which shares nothing.
    """

    requests: Sequence[EditRequest] = ()
    untouched: Sequence[Probe] = ()
    harness: Harness | None = None
    max_new_tokens: int | None = None
    fluency_tokens: int | None = None
    chat_template: bool = False
    batch_size: int = 64
    progress: bool = True
    processes: Processes = ALONE

    def __post_init__(self) -> None:
        if not self.requests and not self.untouched and self.harness is None:
            raise SettingError("nothing to evaluate: give --requests, --untouched, or both; or --harness")
        if self.harness is not None and self.processes.count > 1:
            raise SettingError("--harness is asked by one process: leave it out, and ask it without a launcher")

    @property
    def title(self) -> str:
        """What is asked, in a few words."""
        if not self.requests and not self.untouched:
            return "general ability"
        return f"{len(self.requests)} requests, {len(self.untouched)} untouched facts"

    def ask(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        label: str,
        folder: str | os.PathLike[str] | None = None,
    ) -> Measured:
        """Ask a model everything.

        Args:
            model: In memory, or a ``PeftModel`` with its adapter active.
            tokenizer: Its tokenizer.
            label: What to call it.
            folder: Where to keep what is answered so far; the same call goes on from it.

        Raises:
            SettingError, CheckpointError, TokenizationError: As for :func:`~corsa_plugins.bench.evaluation.evaluate`.
            HarnessFileError, CorsaError: As for :meth:`~corsa_plugins.bench.ability.Harness.ask_once`.
        """
        evaluation = Evaluation(label, ())
        if self.requests or self.untouched:
            evaluation = evaluate(
                model,
                tokenizer,
                self.requests,
                untouched=self.untouched,
                label=label,
                batch_size=self.batch_size,
                progress=self.progress,
                checkpoint=None if folder is None else Path(folder) / UNFINISHED,
                processes=self.processes,
                **self._answering(),
            )
        if self.harness is None:
            return Measured(evaluation)
        if folder is None:
            return Measured(evaluation, self.harness.ask(model, tokenizer))
        return Measured(evaluation, self.harness.ask_once(model, tokenizer, Path(folder) / HARNESS))

    def like(self, saved: Evaluation) -> Questions:
        """The same questions, asked for answers of the length of a saved evaluation where no length is given."""
        then = saved.settings or {}
        return replace(
            self,
            max_new_tokens=self.max_new_tokens or then.get("max_new_tokens"),
            fluency_tokens=self.fluency_tokens or then.get("fluency_tokens"),
        )

    def read(self, saved: Evaluation, folder: str | os.PathLike[str]) -> Measured:
        """What was saved in a folder, if these questions were asked then.

        Args:
            saved: The evaluation in it (:func:`~corsa_plugins.bench.evaluation.load_evaluation`).
            folder: The folder.

        Raises:
            ReportError: It was asked something else.
            HarnessFileError: Its scores of the harness are not there, were asked otherwise, or are another model's.
        """
        if not self.requests and not self.untouched:
            saved = replace(saved, records=(), untouched=(), settings=None)
        else:
            try:
                check_asked(saved, self.requests, self.untouched, self._answering())
            except ReportError as error:
                raise ReportError(f"--baseline {os.fspath(folder)}: {error}") from None
        return Measured(saved, None if self.harness is None else _saved_scores(self.harness, folder))

    def _answering(self) -> dict[str, Any]:
        """The settings that answers depend on."""
        return {
            "max_new_tokens": self.max_new_tokens,
            "chat_template": self.chat_template,
            "fluency_tokens": self.fluency_tokens,
        }


def _saved_scores(harness: Harness, folder: str | os.PathLike[str]) -> Ability:
    path = user_path(folder)
    try:
        scores = harness.read(path / HARNESS)
        summary = json_value((path / SUMMARY).read_text(encoding="utf-8"))
        told = summary.get("general_ability", {}).get("scores", {})
        if told != {**told, **plain_ability(scores)}:
            # Another model may have been evaluated into the folder since.
            raise HarnessFileError(f"the scores in {HARNESS} are not those in {SUMMARY}")
    except HarnessFileError as error:
        raise HarnessFileError(
            f"--baseline {os.fspath(folder)}: {error}. Measure it with the same --harness options into that folder, "
            "give the model itself as --baseline, or leave --harness out"
        ) from error
    return scores
