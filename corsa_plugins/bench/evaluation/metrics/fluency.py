"""How varied a longer text behind the edit prompt is."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from corsa_plugins.bench.evaluation.metrics.metric import Metric

__all__ = ["FLUENCY", "ngram_entropy"]

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


FLUENCY = (
    Metric(
        name="fluency",
        title="Fluency",
        definition="H_2 / 3 + 2 H_3 / 3, the entropies of the bi-grams and tri-grams of a longer text behind the edit "
        "prompt, in bits; published tables show it times 100",
        source="Meng et al., 2022",
        value=lambda record: None if record.continuation is None else ngram_entropy(record.continuation),
        unit="bits",
        needs=frozenset({"continuation"}),
    ),
)
