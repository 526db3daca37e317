"""Whether the new answer comes: efficacy on the edit prompt, generality on its paraphrases.

The CoRSA paper (4.1) counts an answer as right when the target is in what the model generates, here as words of its own
(:func:`~corsa_plugins.data.answers.contains_answer`); the one on AlphaEdit+ (B.2) when the target is exactly the
model's top-1 prediction. Both are reported: the second misses a right answer that comes in a sentence of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from corsa_plugins.bench.evaluation.metrics.averages import on_paraphrases, on_prompt
from corsa_plugins.bench.evaluation.metrics.metric import Metric, Shown

__all__ = ["SUCCESS", "exact_match_tokens"]


def exact_match_tokens(predicted: Sequence[int], target: Sequence[int]) -> bool:
    """Whether the top-1 predictions are the target, over all of its tokens (AlphaEdit+ paper, B.2).

    B.2 asks that the edited object be "exactly the model's top-1 prediction"; for an object of several tokens each must
    be the model's first choice given the ones before it. Greedy continuations may be passed as they are: what follows
    the target does not count.

    Args:
        predicted: Predicted token ids, at least as many as are to be right.
        target: The target's token ids.

    Raises:
        ValueError: ``target`` is empty: nothing would be measured.
    """
    if not len(target):
        raise ValueError("the target has no tokens: there is nothing to match")
    return list(predicted[: len(target)]) == list(target)


SUCCESS = (
    Metric(
        name="efficacy",
        title="Efficacy",
        definition="target_new is in the answer to the edit prompt",
        source="CoRSA paper, 4.1: reliability, or edit success",
        value=on_prompt(lambda answer: answer.says_new),
        shown=Shown.EVERYWHERE,
    ),
    Metric(
        name="efficacy_top1",
        title="Efficacy (top-1)",
        definition="target_new is the top-1 prediction on the edit prompt, all tokens",
        source="AlphaEdit+ paper, B.2",
        value=on_prompt(lambda answer: answer.top1_new),
    ),
    Metric(
        name="generality",
        title="Generality",
        definition="target_new is in the answer, mean over a request's paraphrases",
        source="CoRSA paper, 4.1",
        value=on_paraphrases(lambda answer: answer.says_new),
        needs=frozenset({"paraphrases"}),
        shown=Shown.EVERYWHERE,
    ),
    Metric(
        name="generality_top1",
        title="Generality (top-1)",
        definition="target_new is the top-1 prediction, mean over a request's paraphrases",
        source="AlphaEdit+ paper, B.2",
        value=on_paraphrases(lambda answer: answer.top1_new),
        needs=frozenset({"paraphrases"}),
    ),
)
