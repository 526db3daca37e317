"""What is measured, as small pure functions of model outputs; each says where its definition comes from.

The CoRSA paper (sec. 4.1) counts an answer as right when the target is in what the model generates; the one
on AlphaEdit+ (appendix B.2) when the target is exactly the model's top-1 prediction. Both are
reported: the second is stricter, and misses a right answer that comes in a sentence of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = [
    "Interval",
    "bootstrap_mean",
    "contains_answer",
    "exact_match_tokens",
    "magnitude",
    "margin",
    "mean",
]


class Interval(NamedTuple):
    """A mean with a bootstrap interval.

    Attributes:
        mean: The sample mean.
        low: Lower end of the interval.
        high: Upper end of the interval.
        n: Number of values (requests or probes) it is the mean of.
    """

    mean: float
    low: float
    high: float
    n: int


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


def contains_answer(output: str, answer: str) -> bool:
    """Whether ``answer`` occurs in the generated ``output``, case and whitespace aside (CoRSA paper, 4.1).

    A plain search for the text: "art" is found in "party". The top-1 form, which has no such accidents, is
    reported beside it.

    Raises:
        ValueError: ``answer`` is blank: it would be found in any output.
    """
    wanted = " ".join(answer.casefold().split())
    if not wanted:
        raise ValueError("the answer is blank: it would be found in any output")
    return wanted in " ".join(output.casefold().split())


def margin(log_prob_new: float, log_prob_old: float) -> float:
    """m = log p(target_new | prompt) - log p(target_old | prompt), in nats (CoRSA paper, 3)."""
    return log_prob_new - log_prob_old


def magnitude(log_prob_new: float, log_prob_old: float) -> bool:
    """P(target_new) > P(target_old): success as CounterFact counts it (Meng et al., 2022, Efficacy Score)."""
    return log_prob_new > log_prob_old


def mean(values: Sequence[float]) -> float | None:
    """The mean, or ``None`` of nothing."""
    return math.fsum(values) / len(values) if len(values) else None


def bootstrap_mean(
    values: Sequence[float], *, confidence: float = 0.95, n_resamples: int = 2000, seed: int = 0
) -> Interval:
    """Mean of ``values`` with its percentile bootstrap interval (Efron, 1979).

    The values are resampled as they come, so one value should be one independent unit: here a request, with the mean
    over its paraphrases as the value, since the paraphrases of one request stand and fall together.

    Args:
        values: At least one number.
        confidence: Share of resampled means inside the interval.
        n_resamples: Number of resamples.
        seed: Of the resampling; the same values give the same interval.

    Raises:
        ValueError: There are no values.
    """
    sample = np.asarray(values, dtype=np.float64)
    if not sample.size:
        raise ValueError("the mean of no values: give at least one")
    generator = np.random.default_rng(seed)
    rows_at_once = max(1, 2_000_000 // sample.size)  # bounds the scratch memory to 32 MB
    means = np.concatenate(
        [
            sample[generator.integers(sample.size, size=(min(rows_at_once, n_resamples - done), sample.size))].mean(1)
            for done in range(0, n_resamples, rows_at_once)
        ]
    )
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(math.fsum(sample) / sample.size, float(low), float(high), int(sample.size))
