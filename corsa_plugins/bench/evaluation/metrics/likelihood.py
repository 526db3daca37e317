"""How likely the new and the old answer are: log-probabilities, their margin, and which is the larger."""

from __future__ import annotations

from corsa_plugins.bench.evaluation.metrics.averages import on_neighborhood, on_paraphrases, on_prompt
from corsa_plugins.bench.evaluation.metrics.metric import Metric
from corsa_plugins.bench.evaluation.records import Answer, ProbeAnswer

__all__ = ["LIKELIHOOD", "magnitude", "margin"]


def margin(log_prob_new: float, log_prob_old: float) -> float:
    """m = log p(target_new | prompt) - log p(target_old | prompt), in nats (CoRSA paper, 3)."""
    return log_prob_new - log_prob_old


def magnitude(log_prob_new: float, log_prob_old: float) -> bool:
    """P(target_new | prompt) > P(target_old | prompt): success as CounterFact counts it (Meng et al., 2022).

    On the edit prompt it is their Efficacy Score (ES), on paraphrases the Paraphrase Score (PS), and with the right
    answer in the place of ``target_new``, on neighbors, the Neighborhood Score (NS). Equal is no success.
    """
    return log_prob_new > log_prob_old


def _margin(answer: Answer) -> float | None:
    return None if answer.log_prob_old is None else margin(answer.log_prob_new, answer.log_prob_old)


def _magnitude(answer: Answer) -> bool | None:
    return None if answer.log_prob_old is None else magnitude(answer.log_prob_new, answer.log_prob_old)


def _neighbor_magnitude(answer: ProbeAnswer) -> bool | None:
    if answer.log_prob is None or answer.log_prob_new is None:
        return None
    return magnitude(answer.log_prob, answer.log_prob_new)


LIKELIHOOD = (
    Metric(
        name="magnitude",
        title="P(new) > P(old)",
        definition="target_new is likelier than target_old behind the edit prompt",
        source="CounterFact: Meng et al., 2022",
        value=on_prompt(_magnitude),
        needs=frozenset({"target_old"}),
    ),
    Metric(
        name="magnitude_paraphrases",
        title="P(new) > P(old), paraphrases",
        definition="target_new is likelier than target_old, mean over a request's paraphrases",
        source="CounterFact: Meng et al., 2022",
        value=on_paraphrases(_magnitude),
        needs=frozenset({"target_old", "paraphrases"}),
    ),
    Metric(
        name="magnitude_neighborhood",
        title="P(right) > P(new), neighborhood",
        definition="the right answer itself, no alias, is likelier than target_new, mean over the neighborhood probes "
        "for which target_new is not right too",
        source="CounterFact: Meng et al., 2022",
        value=on_neighborhood(_neighbor_magnitude),
        needs=frozenset({"neighborhood"}),
    ),
    Metric(
        name="margin",
        title="Margin",
        definition="log p(target_new) - log p(target_old) behind the edit prompt, in nats",
        source="CoRSA paper, 3",
        value=on_prompt(_margin),
        unit="nats",
        needs=frozenset({"target_old"}),
    ),
    Metric(
        name="margin_paraphrases",
        title="Margin, paraphrases",
        definition="log p(target_new) - log p(target_old), mean over a request's paraphrases, in nats",
        source="CoRSA paper, 3",
        value=on_paraphrases(_margin),
        unit="nats",
        needs=frozenset({"target_old", "paraphrases"}),
    ),
    Metric(
        name="log_prob_new",
        title="log p(new)",
        definition="log p(target_new) behind the edit prompt, summed over its tokens, in nats",
        source="CoRSA paper, Figure 2",
        value=on_prompt(lambda answer: answer.log_prob_new),
        unit="nats",
    ),
    Metric(
        name="log_prob_old",
        title="log p(old)",
        definition="log p(target_old) behind the edit prompt, summed over its tokens, in nats",
        source="CoRSA paper, Figure 2",
        value=on_prompt(lambda answer: answer.log_prob_old),
        better=0,
        unit="nats",
        needs=frozenset({"target_old"}),
    ),
)
