"""What a model answered, request by request, and the metrics that follow from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from corsa_plugins.bench.evaluation.metrics import Interval, bootstrap_mean, magnitude, margin, mean, ngram_entropy

__all__ = ["METRICS", "UNTOUCHED_METRICS", "Answer", "Evaluation", "Metric", "ProbeAnswer", "Record"]


class _Saved(BaseModel):
    # NaN from a damaged model must survive the file it is reported in
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Answer(_Saved):
    """What the model did with one prompt of a request (its edit prompt or a paraphrase).

    Attributes:
        prompt: What was asked.
        output: What the model generated, greedily, as it came.
        says_new: target_new is in the answer (:func:`~corsa_plugins.data.answers.contains_answer`).
        says_old: target_old is in the answer; ``None`` if the request has none.
        top1_new: target_new is the model's top-1 prediction, over all of its tokens.
        top1_old: The same for target_old.
        log_prob_new: log p(target_new | prompt) in nats, summed over tokens.
        log_prob_old: The same for target_old.
    """

    prompt: str
    output: str
    says_new: bool
    says_old: bool | None
    top1_new: bool
    top1_old: bool | None
    log_prob_new: float
    log_prob_old: float | None


class ProbeAnswer(_Saved):
    """What the model did with a probe; the verdicts are ``None`` if the probe has no answer to compare with.

    Attributes:
        prompt: What was asked.
        answer: The right answer.
        output: What the model generated.
        says_answer: The right answer (:func:`~corsa_plugins.data.answers.contains_answer`) or one of
            ``aliases`` (:func:`~corsa_plugins.data.answers.contains_alias`) is in the answer given.
        top1: ``answer`` is the model's top-1 prediction, over all of its tokens; aliases do not count.
        log_prob: log p(answer | prompt) in nats, of ``answer`` alone.
        log_prob_new: For a neighborhood probe, log p(target_new | prompt) of its request; ``None`` if that is a right
            answer here too, the answer itself or an alias.
        aliases: The other answers that counted as right.
        said_alias: The first alias in the answer given, where ``answer`` itself is not in it.
    """

    prompt: str
    answer: str | None
    output: str
    says_answer: bool | None = None
    top1: bool | None = None
    log_prob: float | None = None
    log_prob_new: float | None = None
    aliases: tuple[str, ...] = ()
    said_alias: str | None = None


class Record(_Saved):
    """One request with everything the model answered.

    Attributes:
        continuation: What the model wrote behind the edit prompt when asked for a longer text; ``None`` if it was not.
    """

    index: int
    case_id: str | int | None
    target_new: str
    target_old: str | None
    edit: Answer
    paraphrases: tuple[Answer, ...]
    neighborhood: tuple[ProbeAnswer, ...]
    portability: tuple[ProbeAnswer, ...]
    continuation: str | None = None


@dataclass(frozen=True)
class Metric:
    """One number per request, and what it means.

    Attributes:
        title: For tables.
        value: Of a record; ``None`` where the record has nothing to measure it on.
        definition: What is counted, and the source of the definition.
        percent: A share, to be shown in percent.
        better: ``1`` if higher is better, ``-1`` if lower is, ``0`` for a number that only describes.
        unit: Of a value that is no share.
    """

    title: str
    value: Callable[[Record], float | None]
    definition: str
    percent: bool = True
    better: int = 1
    unit: str = "nats"


def _average(values: Iterable[float | bool | None]) -> float | None:
    return mean([float(value) for value in values if value is not None])


def _edit(get: Callable[[Answer], float | bool | None]) -> Callable[[Record], float | None]:
    return lambda record: _average([get(record.edit)])


def _paraphrases(get: Callable[[Answer], float | bool | None]) -> Callable[[Record], float | None]:
    return lambda record: _average(get(answer) for answer in record.paraphrases)


def _margin(answer: Answer) -> float | None:
    return None if answer.log_prob_old is None else margin(answer.log_prob_new, answer.log_prob_old)


def _magnitude(answer: Answer) -> bool | None:
    return None if answer.log_prob_old is None else magnitude(answer.log_prob_new, answer.log_prob_old)


def _neighbour_magnitude(answer: ProbeAnswer) -> bool | None:
    if answer.log_prob is None or answer.log_prob_new is None:
        return None
    return magnitude(answer.log_prob, answer.log_prob_new)


METRICS: dict[str, Metric] = {
    "efficacy": Metric(
        "Efficacy",
        _edit(lambda answer: answer.says_new),
        "target_new is in the answer to the edit prompt (CoRSA paper, 4.1: reliability, or edit success)",
    ),
    "efficacy_top1": Metric(
        "Efficacy (top-1)",
        _edit(lambda answer: answer.top1_new),
        "target_new is the top-1 prediction on the edit prompt, all tokens (AlphaEdit+ paper, B.2)",
    ),
    "generality": Metric(
        "Generality",
        _paraphrases(lambda answer: answer.says_new),
        "target_new is in the answer, mean over a request's paraphrases (CoRSA paper, 4.1)",
    ),
    "generality_top1": Metric(
        "Generality (top-1)",
        _paraphrases(lambda answer: answer.top1_new),
        "target_new is the top-1 prediction, mean over a request's paraphrases (AlphaEdit+ paper, B.2)",
    ),
    "old_on_prompt": Metric(
        "Old answer on the prompt",
        _edit(lambda answer: answer.says_old),
        "target_old is in the answer to the edit prompt (retention, CoRSA paper, 4.4, on the prompt itself)",
        better=-1,
    ),
    "old_retention": Metric(
        "Old-knowledge retention",
        _paraphrases(lambda answer: answer.says_old),
        "target_old is in the answer, mean over a request's paraphrases (CoRSA paper, 4.4)",
        better=-1,
    ),
    "specificity": Metric(
        "Specificity",
        lambda record: _average(answer.says_answer for answer in record.neighborhood),
        "the right answer, or one of its aliases, is in the answer, mean over a request's neighborhood probes "
        "(neighborhood success, AlphaEdit+ paper, B.2; the CoRSA paper's specificity is general ability)",
    ),
    "specificity_top1": Metric(
        "Specificity (top-1)",
        lambda record: _average(answer.top1 for answer in record.neighborhood),
        "the right answer itself, no alias, is the top-1 prediction, mean over neighborhood probes (AlphaEdit+ paper, "
        "B.2)",
    ),
    "portability": Metric(
        "Portability",
        lambda record: _average(answer.says_answer for answer in record.portability),
        "the right answer, or one of its aliases, is in the answer, mean over a request's portability probes "
        "(Yao et al., 2023)",
    ),
    "portability_top1": Metric(
        "Portability (top-1)",
        lambda record: _average(answer.top1 for answer in record.portability),
        "the right answer itself, no alias, is the top-1 prediction, all tokens, mean over portability probes "
        "(Yao et al., 2023)",
    ),
    "magnitude": Metric(
        "P(new) > P(old)",
        _edit(_magnitude),
        "target_new is likelier than target_old behind the edit prompt (CounterFact: Meng et al., 2022)",
    ),
    "magnitude_paraphrases": Metric(
        "P(new) > P(old), paraphrases",
        _paraphrases(_magnitude),
        "target_new is likelier than target_old, mean over a request's paraphrases (CounterFact: Meng et al., 2022)",
    ),
    "magnitude_neighborhood": Metric(
        "P(right) > P(new), neighborhood",
        lambda record: _average(_neighbour_magnitude(answer) for answer in record.neighborhood),
        "the right answer itself, no alias, is likelier than target_new, mean over the neighborhood probes for which "
        "target_new is not right too (CounterFact: Meng et al., 2022)",
    ),
    "margin": Metric(
        "Margin",
        _edit(_margin),
        "log p(target_new) - log p(target_old) behind the edit prompt, in nats (CoRSA paper, 3)",
        percent=False,
    ),
    "margin_paraphrases": Metric(
        "Margin, paraphrases",
        _paraphrases(_margin),
        "log p(target_new) - log p(target_old), mean over a request's paraphrases, in nats (CoRSA paper, 3)",
        percent=False,
    ),
    "log_prob_new": Metric(
        "log p(new)",
        _edit(lambda answer: answer.log_prob_new),
        "log p(target_new) behind the edit prompt, summed over its tokens, in nats (CoRSA paper, Figure 2)",
        percent=False,
    ),
    "log_prob_old": Metric(
        "log p(old)",
        _edit(lambda answer: answer.log_prob_old),
        "log p(target_old) behind the edit prompt, summed over its tokens, in nats (CoRSA paper, Figure 2)",
        percent=False,
        better=0,
    ),
    "fluency": Metric(
        "Fluency",
        lambda record: None if record.continuation is None else ngram_entropy(record.continuation),
        "H_2 / 3 + 2 H_3 / 3, the entropies of the bi-grams and tri-grams of a longer text behind the edit prompt, in "
        "bits; published tables show it times 100 (Meng et al., 2022)",
        percent=False,
        unit="bits",
    ),
}
"""The metrics of a request, by name, in the order of a report."""

UNTOUCHED_METRICS: dict[str, tuple[str, Callable[[ProbeAnswer], bool | None], str]] = {
    "untouched": (
        "Untouched facts",
        lambda answer: answer.says_answer,
        "the right answer, or one of its aliases, is in the answer to a fact that no request is about (untouched "
        "knowledge, CoRSA paper, 4.3)",
    ),
    "untouched_top1": (
        "Untouched facts (top-1)",
        lambda answer: answer.top1,
        "the right answer itself, no alias, is the top-1 prediction for a fact that no request is about (AlphaEdit+ "
        "paper, B.2)",
    ),
}
"""The metrics of an untouched fact, by name: title, value of one, definition. Shares, higher is better."""


@dataclass(frozen=True)
class Evaluation:
    """One model, measured at one moment.

    Attributes:
        label: Which model and which moment, for instance ``"after all rounds"``.
        records: One per request, in the order of the requests.
        untouched: One per untouched fact, in order.
        settings: What the answers depend on besides the model: ``max_new_tokens``, ``chat_template``.
    """

    label: str
    records: tuple[Record, ...]
    untouched: tuple[ProbeAnswer, ...] = ()
    settings: dict[str, Any] | None = None

    def values(self, metric: str) -> list[float | None]:
        """The metric's value for each request (each untouched fact, for the untouched metrics), in order.

        Raises:
            KeyError: There is no such metric.
        """
        if metric in UNTOUCHED_METRICS:
            verdicts = [UNTOUCHED_METRICS[metric][1](answer) for answer in self.untouched]
            return [None if verdict is None else float(verdict) for verdict in verdicts]
        return [METRICS[metric].value(record) for record in self.records]

    def summary(self) -> dict[str, Interval]:
        """Mean and 95 % bootstrap interval of every metric that has something to measure, by name."""
        summary = {}
        for name in (*METRICS, *UNTOUCHED_METRICS):
            values = [value for value in self.values(name) if value is not None]
            if values:
                summary[name] = bootstrap_mean(values)
        return summary
