"""Whether an answer that the edit is not about is what it was before, right or wrong."""

from __future__ import annotations

from corsa_plugins.bench.evaluation.metrics.averages import average
from corsa_plugins.bench.evaluation.metrics.metric import Metric, Moments, Of
from corsa_plugins.bench.evaluation.records import ProbeAnswer, Record
from corsa_plugins.data.answers import same_answer
from corsa_plugins.model.asking import cut_answer

__all__ = ["LOCALITY"]

_SOURCE = "papers/model-merging-for-knowledge-editing.md, A.3"


def _same(then: ProbeAnswer, now: ProbeAnswer, whole_output: bool) -> bool:
    outputs = (answer.output if whole_output else cut_answer(answer.output) for answer in (then, now))
    return same_answer(*outputs)


def _neighborhood(then: Record, now: Record, whole_output: bool) -> float | None:
    pairs = zip(then.neighborhood, now.neighborhood, strict=True)
    return average(_same(before, after, whole_output) for before, after in pairs)


LOCALITY = (
    Metric(
        name="locality",
        title="Locality",
        definition="the answer is what it was before the edit, right or wrong, mean over a request's neighborhood "
        "probes",
        source=_SOURCE,
        value=_neighborhood,
        moments=Moments.EDIT,
        needs=frozenset({"neighborhood"}),
    ),
    Metric(
        name="untouched_locality",
        title="Locality, untouched facts",
        definition="the answer to a fact that no request is about is what it was before",
        source=_SOURCE,
        value=_same,
        of=Of.FACT,
        moments=Moments.EDIT,
    ),
)
