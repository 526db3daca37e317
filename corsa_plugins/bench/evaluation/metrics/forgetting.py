"""What of an update is lost by the ones that follow it (CoRSA paper, 4.3)."""

from __future__ import annotations

from collections.abc import Callable

from corsa_plugins.bench.evaluation.metrics.averages import on_paraphrases, on_prompt
from corsa_plugins.bench.evaluation.metrics.metric import Metric, Moments, Shown
from corsa_plugins.bench.evaluation.records import Record

__all__ = ["FORGETTING"]


def _lost(value: Callable[[Record], float | None]) -> Callable[[Record, Record, bool], float | None]:
    def difference(then: Record, now: Record, whole_output: bool) -> float | None:
        before, after = value(then), value(now)
        return None if before is None or after is None else before - after

    return difference


FORGETTING = (
    Metric(
        name="forgetting",
        title="Forgetting",
        definition="generality right after the update minus generality now, after later updates",
        source="CoRSA paper, 4.3",
        value=_lost(on_paraphrases(lambda answer: answer.says_new)),
        moments=Moments.LATER,
        better=-1,
        needs=frozenset({"paraphrases"}),
        shown=Shown.COMPARED,
    ),
    Metric(
        name="forgetting_edit_prompt",
        title="Forgetting, edit prompts",
        definition="efficacy right after the update minus efficacy now, after later updates",
        source="CoRSA paper, 4.3, on edit prompts",
        value=_lost(on_prompt(lambda answer: answer.says_new)),
        moments=Moments.LATER,
        better=-1,
    ),
)
