"""Whether two evaluations can be compared: only of the same questions, asked in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from corsa_plugins.bench.evaluation.evaluation import Evaluation
from corsa_plugins.bench.evaluation.records import ProbeAnswer
from corsa_plugins.data.requests import EditRequest, Probe
from corsa_plugins.errors import CorsaError

__all__ = ["ReportError", "check_asked", "check_same_questions"]


class ReportError(CorsaError, ValueError):
    """A saved evaluation that cannot be read, or evaluations that cannot be compared."""


def check_same_questions(first: Evaluation, second: Evaluation) -> None:
    """Raise unless two evaluations asked the same prompts in the same way, and took the same answers for right.

    Raises:
        ReportError: They did not: a difference between them would not be the model's.
    """
    if first.settings != second.settings:
        raise ReportError(
            f"{first.label!r} and {second.label!r} were asked differently ({first.settings} and {second.settings}): "
            "evaluate both with the same settings"
        )
    if _prompts(first) != _prompts(second):
        raise ReportError(
            f"{first.label!r} and {second.label!r} were asked different prompts, or judged by different right answers: "
            "evaluate both on the same files"
        )


def _prompts(evaluation: Evaluation) -> list[Any]:
    asked: list[Any] = [
        (
            record.target_new,
            record.target_old,
            [answer.prompt for answer in (record.edit, *record.paraphrases)],
            [_asked(answer) for answer in (*record.neighborhood, *record.portability)],
        )
        for record in evaluation.records
    ]
    return [*asked, *(_asked(answer) for answer in evaluation.untouched)]


def _asked(probe: Probe | ProbeAnswer) -> tuple[str, str | None, tuple[str, ...]]:
    return probe.prompt, probe.answer, probe.aliases


def check_asked(
    evaluation: Evaluation, requests: Sequence[EditRequest], untouched: Sequence[Probe], settings: Mapping[str, Any]
) -> None:
    """Raise unless an evaluation, a saved one for instance, can be compared with one that is still to be made.

    Raises:
        ReportError: It was made of other requests or facts, or with other settings.
    """
    wanted_prompts: list[Any] = [
        (
            request.target_new,
            request.target_old,
            [request.prompt, *request.paraphrases],
            [_asked(probe) for probe in (*request.neighborhood, *request.portability)],
        )
        for request in requests
    ]
    asked = _prompts(evaluation)
    if asked[: len(evaluation.records)] != wanted_prompts:
        raise ReportError(f"{evaluation.label!r} is of other requests: evaluate it on these")
    if asked[len(evaluation.records) :] != [_asked(probe) for probe in untouched]:
        raise ReportError(
            f"{evaluation.label!r} is of {len(evaluation.untouched)} untouched facts, and here are {len(untouched)}, "
            "not the same: give --untouched what it was given then"
        )
    wanted = {name: value for name, value in settings.items() if value is not None}
    if evaluation.settings is not None and evaluation.settings != wanted:
        raise ReportError(f"{evaluation.label!r} was asked with {evaluation.settings}: give the same settings")
