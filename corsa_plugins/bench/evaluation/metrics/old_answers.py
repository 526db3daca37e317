"""Whether the old answer is still there, or comes back: retention and activation (CoRSA paper, 4.4)."""

from __future__ import annotations

from corsa_plugins.bench.evaluation.metrics.averages import average, on_paraphrases, on_prompt
from corsa_plugins.bench.evaluation.metrics.metric import Metric, Moments, Shown
from corsa_plugins.bench.evaluation.records import Record

__all__ = ["ACTIVATION", "RETENTION"]


def _came_back(then: Record, now: Record, whole_output: bool) -> float | None:
    pairs = zip(then.paraphrases, now.paraphrases, strict=True)
    return average(after.says_old and not before.says_old for before, after in pairs if after.says_old is not None)


RETENTION = (
    Metric(
        name="old_on_prompt",
        title="Old answer on the prompt",
        definition="target_old is in the answer to the edit prompt",
        source="retention, CoRSA paper, 4.4, on the prompt itself",
        value=on_prompt(lambda answer: answer.says_old),
        better=-1,
        needs=frozenset({"target_old"}),
    ),
    Metric(
        name="old_retention",
        title="Old-knowledge retention",
        definition="target_old is in the answer, mean over a request's paraphrases",
        source="CoRSA paper, 4.4",
        value=on_paraphrases(lambda answer: answer.says_old),
        better=-1,
        needs=frozenset({"target_old", "paraphrases"}),
        shown=Shown.COMPARED,
        heading="old answers retained",
    ),
)

ACTIVATION = (
    Metric(
        name="old_activation",
        title="Old-knowledge activation",
        definition="target_old is in the answer now, after later updates, and was not right after the update; share of "
        "all of a request's paraphrases",
        source="CoRSA paper, 4.4",
        value=_came_back,
        moments=Moments.LATER,
        better=-1,
        needs=frozenset({"target_old", "paraphrases"}),
        shown=Shown.COMPARED,
        heading="old answers activated",
    ),
)
