"""What else a request's probes show: specificity on its neighbors, portability on what follows from it."""

from __future__ import annotations

from corsa_plugins.bench.evaluation.metrics.averages import on_neighborhood, on_portability
from corsa_plugins.bench.evaluation.metrics.metric import Metric, Shown

__all__ = ["PROBES"]

PROBES = (
    Metric(
        name="specificity",
        title="Specificity",
        definition="the right answer, or one of its aliases, is in the answer, mean over a request's neighborhood "
        "probes",
        source="neighborhood success, AlphaEdit+ paper, B.2; the CoRSA paper's specificity is general ability",
        value=on_neighborhood(lambda answer: answer.says_answer),
        needs=frozenset({"neighborhood"}),
        shown=Shown.COMPARED,
    ),
    Metric(
        name="specificity_top1",
        title="Specificity (top-1)",
        definition="the right answer itself, no alias, is the top-1 prediction, mean over neighborhood probes",
        source="AlphaEdit+ paper, B.2",
        value=on_neighborhood(lambda answer: answer.top1),
        needs=frozenset({"neighborhood"}),
    ),
    Metric(
        name="portability",
        title="Portability",
        definition="the right answer, or one of its aliases, is in the answer, mean over a request's portability "
        "probes",
        source="Yao et al., 2023",
        value=on_portability(lambda answer: answer.says_answer),
        needs=frozenset({"portability"}),
        shown=Shown.COMPARED,
    ),
    Metric(
        name="portability_top1",
        title="Portability (top-1)",
        definition="the right answer itself, no alias, is the top-1 prediction, all tokens, mean over portability "
        "probes",
        source="Yao et al., 2023",
        value=on_portability(lambda answer: answer.top1),
        needs=frozenset({"portability"}),
    ),
)
