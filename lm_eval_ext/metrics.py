"""What counts as an answer, for task files of one's own.

A file refers to them by ``!function``, and they are in the harness's registries from then on::

    metric_list:
      - metric: !function lm_eval_ext.metrics.answer_contained
    filter_list:
      - name: first_sentence
        filter: [{function: first_sentence}]

``answer_contained`` and ``answer_exact`` are for tasks with ``output_type: generate_until``; :func:`new_over_old`, as
``process_results``, is for ``multiple_choice`` with the new answer as the first choice and the old one as the second.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import lm_eval.api.metrics  # noqa: F401  "mean" is registered there
from lm_eval.api.filter import Filter
from lm_eval.api.registry import register_filter, register_metric

from corsa_plugins.bench.evaluation.metrics.likelihood import magnitude, margin
from corsa_plugins.data.answers import contains_answer, is_answer
from corsa_plugins.model.asking import cut_answer

__all__ = ["FirstSentence", "answer_contained", "answer_exact", "new_over_old"]


@register_metric(
    metric="answer_contained", higher_is_better=True, output_type="generate_until", aggregation="mean"
)  # fmt: skip
def answer_contained(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Whether an answer stands in what was written, as words of its own.

    :func:`~corsa_plugins.data.answers.contains_answer` (CoRSA paper, 4.1).

    Args:
        references: One answer.
        predictions: One text.
    """
    return float(contains_answer(predictions[0], references[0]))


@register_metric(metric="answer_exact", higher_is_better=True, output_type="generate_until", aggregation="mean")
def answer_exact(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Whether what was written is an answer and nothing else (:func:`~corsa_plugins.data.answers.is_answer`).

    Args:
        references: One answer.
        predictions: One text.
    """
    return float(is_answer(predictions[0], references[0]))


def new_over_old(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """``magnitude``, whether the first choice is likelier than the second, and ``margin``, by how many nats.

    :func:`~corsa_plugins.bench.evaluation.metrics.likelihood.magnitude` (Meng et al., 2022) and
    :func:`~corsa_plugins.bench.evaluation.metrics.likelihood.margin` (CoRSA paper, 3).

    Args:
        doc: Not used.
        results: Of each choice, its log-probability in nats, summed over its tokens, and whether it is the greedy one.
    """
    (new, _), (old, _) = results
    return {"magnitude": float(magnitude(new, old)), "margin": margin(new, old)}


@register_filter("first_sentence")
class FirstSentence(Filter):
    """The first sentence of what was written, in which an answer is looked for behind a plain prompt.

    :func:`~corsa_plugins.model.asking.cut_answer`.
    """

    def apply(self, resps: Iterable[Sequence[str]], docs: Sequence[dict[str, Any]]) -> list[list[str]]:
        """Of each text of each question."""
        return [[cut_answer(text) for text in texts] for texts in resps]
