"""What is measured, as small pure functions of model outputs; each says where its definition comes from.

The CoRSA paper (sec. 4.1) counts an answer as right when the target is in what the model generates; the one
on AlphaEdit+ (appendix B.2) when the target is exactly the model's top-1 prediction. Both are
reported: the second is stricter, and misses a right answer that comes in a sentence of its own.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = [
    "Interval",
    "bootstrap_mean",
    "exact_match_tokens",
    "magnitude",
    "margin",
    "mean",
    "ngram_entropy",
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


def margin(log_prob_new: float, log_prob_old: float) -> float:
    """m = log p(target_new | prompt) - log p(target_old | prompt), in nats (CoRSA paper, 3)."""
    return log_prob_new - log_prob_old


def magnitude(log_prob_new: float, log_prob_old: float) -> bool:
    """P(target_new | prompt) > P(target_old | prompt): success as CounterFact counts it (Meng et al., 2022).

    On the edit prompt it is their Efficacy Score (ES), on paraphrases the Paraphrase Score (PS), and with the right
    answer in the place of ``target_new``, on neighbors, the Neighborhood Score (NS). Equal is no success.
    """
    return log_prob_new > log_prob_old


_WORD = re.compile(r"\w+|[^\w\s]")


def ngram_entropy(text: str) -> float | None:
    """Fluency as the weighted entropy of a text's bi-grams and tri-grams, in bits (Meng et al., 2022, "GE").

    H_n = - sum over the distinct n-grams g of f(g) log2 f(g), where f(g) is g's share of the text's n-grams, and the
    fluency is (1/3) H_2 + (2/3) H_3, the weights of ROME's code. A text that repeats itself has a low one. Published
    tables show it times 100 (papers/model-merging-for-knowledge-editing.md, A.3). Words and punctuation marks are the
    units. A text of n tri-grams has at most log2(n) bits: compare texts of one length limit only.

    Returns:
        ``None`` if the text has fewer than three words: it has no tri-gram.
    """
    words = _WORD.findall(text)
    if len(words) < 3:
        return None
    return (_entropy(words, 2) + 2 * _entropy(words, 3)) / 3


def _entropy(words: Sequence[str], n: int) -> float:
    counts = Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))
    total = sum(counts.values())
    return math.fsum(count / total * math.log2(total / count) for count in counts.values())


def mean(values: Sequence[float]) -> float | None:
    """The arithmetic mean (1/n) sum of x_i, or ``None`` of nothing."""
    return math.fsum(values) / len(values) if len(values) else None


def bootstrap_mean(
    values: Sequence[float], *, confidence: float = 0.95, n_resamples: int = 2000, seed: int = 0
) -> Interval:
    """Mean of ``values`` with its percentile bootstrap interval (Efron, 1979).

    Of ``n_resamples`` samples of the same size, drawn from the values with replacement, the means are taken; the
    interval reaches from their (1 - confidence)/2 to their (1 + confidence)/2 quantile. The values are resampled as
    they come, so one value should be one independent unit: here a request, with the mean over its paraphrases as the
    value, since the paraphrases of one request stand and fall together.

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
    unique, counts = np.unique(sample, return_counts=True)
    if unique.size <= max(2, sample.size // 8):
        # Shares take few values: how often each is drawn is multinomial, and no draw need be made by itself.
        means = generator.multinomial(sample.size, counts / sample.size, size=n_resamples) @ unique / sample.size
    else:
        means = _resampled_means(sample, n_resamples, generator)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(math.fsum(sample) / sample.size, float(low), float(high), int(sample.size))


def _resampled_means(sample: np.ndarray, n_resamples: int, generator: np.random.Generator) -> np.ndarray:
    rows_at_once = max(1, 2_000_000 // sample.size)  # bounds the scratch memory to 32 MB
    return np.concatenate(
        [
            sample[generator.integers(sample.size, size=(min(rows_at_once, n_resamples - done), sample.size))].mean(1)
            for done in range(0, n_resamples, rows_at_once)
        ]
    )
