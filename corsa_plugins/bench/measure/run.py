"""Measuring a model, and its baseline before it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from corsa_plugins.bench.evaluation import load_evaluation
from corsa_plugins.bench.evaluation.storage import RECORDS, SUMMARY
from corsa_plugins.bench.measure.questions import BASELINE, Measured, Questions
from corsa_plugins.bench.measure.subject import Subject
from corsa_plugins.errors import SettingError
from corsa_plugins.model.loading import load_model
from corsa_plugins.model.placement import Where
from corsa_plugins.paths import user_path

__all__ = ["Measurement", "measure"]


@dataclass(frozen=True)
class Measurement:
    """A model measured, and what it is compared with.

    Attributes:
        after: The model.
        before: The baseline, if there is one.
        before_is_saved: Whether the baseline was read from a folder, and not measured.
        questions: What was asked.
    """

    after: Measured
    before: Measured | None
    before_is_saved: bool
    questions: Questions

    @property
    def measured(self) -> list[Measured]:
        """The baseline, if there is one, and the model."""
        return [self.before, self.after] if self.before else [self.after]


def measure(
    subject: Subject,
    questions: Questions,
    *,
    folder: str | os.PathLike[str] | None = None,
    device: Where = None,
    dtype: str = "auto",
) -> Measurement:
    """Measure a model, and its baseline before it; one model at a time is in memory.

    Everything that can be checked is, before a model is loaded.

    Args:
        subject: Which model, and against what.
        questions: What is asked; where the baseline is saved, answers are as long as they were then.
        folder: Where to keep what is answered so far, in ``baseline/`` that of the baseline.
        device: As for :func:`~corsa_plugins.model.loading.load_model`.
        dtype: Likewise.

    Raises:
        SettingError: The folder holds the baseline, which would be lost.
        ReportError, HarnessFileError: The saved baseline was asked something else.
        LoadingError: A model or an adapter cannot be loaded.
    """
    output = None if folder is None else Path(folder)
    saved = None
    before: Measured | None = None
    if subject.baseline:
        results = user_path(subject.baseline)
        saved = load_evaluation(results) if any((results / name).exists() for name in (SUMMARY, RECORDS)) else None
        if saved and output and output.resolve() == results.resolve():
            raise SettingError(f"--output {output} holds the baseline, which would be lost: name another folder")
    own, other = subject.labels(saved)
    if saved and subject.baseline:
        questions = questions.like(saved)
        before = questions.read(replace(saved, label=other), subject.baseline)
    baseline_folder = output / BASELINE if output else None
    same_model = bool(subject.adapter) and subject.baseline == subject.model
    if subject.baseline and not before and not same_model:
        before = questions.ask(*load_model(subject.baseline, device=device, dtype=dtype), other, baseline_folder)
    model, tokenizer = subject.load(device, dtype)
    if subject.baseline and not before:
        with model.disable_adapter():
            before = questions.ask(model, tokenizer, other, baseline_folder)
    after = questions.ask(model, tokenizer, own, output)
    return Measurement(after, before, saved is not None, questions)
