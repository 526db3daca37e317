"""Whether facts that no request is about are still answered right."""

from __future__ import annotations

from corsa_plugins.bench.evaluation.metrics.metric import Metric, Of, Shown

__all__ = ["UNTOUCHED"]

UNTOUCHED = (
    Metric(
        name="untouched",
        title="Untouched facts",
        definition="the right answer, or one of its aliases, is in the answer to a fact that no request is about",
        source="untouched knowledge, CoRSA paper, 4.3",
        value=lambda answer: answer.says_answer,
        of=Of.FACT,
        shown=Shown.COMPARED,
        heading="untouched",
    ),
    Metric(
        name="untouched_top1",
        title="Untouched facts (top-1)",
        definition="the right answer itself, no alias, is the top-1 prediction for a fact that no request is about",
        source="AlphaEdit+ paper, B.2",
        value=lambda answer: answer.top1,
        of=Of.FACT,
    ),
)
