"""Ask a model every prompt of a list of edit requests, and keep what it said.

:func:`evaluate` measures one model at one moment and gives the result a label ("before", "right after round 1", "after
all rounds"). An :class:`Evaluation` never mixes two moments: comparing them is comparing two evaluations
(:func:`corsa_plugins.evaluation.report.compare`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from corsa_plugins.errors import SettingError
from corsa_plugins.evaluation.metrics import Interval, bootstrap_mean, contains_answer, magnitude, margin, mean
from corsa_plugins.inference import TargetScore, cut_answer, generate_answers, score_targets
from corsa_plugins.requests import EditRequest, Probe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["METRICS", "Answer", "Evaluation", "Metric", "ProbeAnswer", "Record", "evaluate"]

logger = logging.getLogger(__name__)


class _Saved(BaseModel):
    # NaN from a damaged model must survive the file it is reported in
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Answer(_Saved):
    """What the model did with one prompt of a request (its edit prompt or a paraphrase).

    Attributes:
        prompt: What was asked.
        output: What the model generated, greedily, as it came.
        says_new: target_new is in the answer (:func:`~corsa_plugins.evaluation.metrics.contains_answer`).
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
        says_answer: The right answer is in the answer given.
        top1: The right answer is the model's top-1 prediction, over all of its tokens.
        log_prob: log p(answer | prompt) in nats.
    """

    prompt: str
    answer: str | None
    output: str
    says_answer: bool | None = None
    top1: bool | None = None
    log_prob: float | None = None


class Record(_Saved):
    """One request with everything the model answered."""

    index: int
    case_id: str | int | None
    target_new: str
    target_old: str | None
    edit: Answer
    paraphrases: tuple[Answer, ...]
    neighborhood: tuple[ProbeAnswer, ...]
    portability: tuple[ProbeAnswer, ...]


@dataclass(frozen=True)
class Metric:
    """One number per request, and what it means.

    Attributes:
        title: For tables.
        value: Of a record; ``None`` where the record has nothing to measure it on.
        definition: What is counted, and the source of the definition.
        percent: A share, to be shown in percent; otherwise nats.
        better: ``1`` if higher is better, ``-1`` if lower is, ``0`` for a number that only describes.
    """

    title: str
    value: Callable[[Record], float | None]
    definition: str
    percent: bool = True
    better: int = 1


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
        "target_old is in the answer to the edit prompt",
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
        "the right answer is in the answer, mean over a request's neighborhood probes",
    ),
    "specificity_top1": Metric(
        "Specificity (top-1)",
        lambda record: _average(answer.top1 for answer in record.neighborhood),
        "the right answer is the top-1 prediction, mean over neighborhood probes (AlphaEdit+ paper, B.2)",
    ),
    "portability": Metric(
        "Portability",
        lambda record: _average(answer.says_answer for answer in record.portability),
        "the right answer is in the answer, mean over a request's portability probes (Yao et al., 2023)",
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
        "log p(target_new) behind the edit prompt, summed over its tokens, in nats",
        percent=False,
    ),
    "log_prob_old": Metric(
        "log p(old)",
        _edit(lambda answer: answer.log_prob_old),
        "log p(target_old) behind the edit prompt, summed over its tokens, in nats",
        percent=False,
        better=0,
    ),
}
"""The metrics of a request, by name, in the order of a report."""

UNTOUCHED_METRICS: dict[str, tuple[str, Callable[[ProbeAnswer], bool | None], str]] = {
    "untouched": (
        "Untouched facts",
        lambda answer: answer.says_answer,
        "the right answer is in the answer to a fact that no request is about (specificity on untouched facts)",
    ),
    "untouched_top1": (
        "Untouched facts (top-1)",
        lambda answer: answer.top1,
        "the right answer is the top-1 prediction for a fact that no request is about",
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


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    *,
    label: str = "model",
    untouched: Sequence[Probe | EditRequest] | None = None,
    batch_size: int = 64,
    max_new_tokens: int | None = None,
    chat_template: bool = False,
    progress: bool = True,
) -> Evaluation:
    """Measure a model on edit requests, and on facts that should have stayed as they were.

    Everything is asked greedily and in batches; neither the batch size nor the tokenizer's padding side changes a
    verdict. Behind a plain prompt a model that was never taught to stop goes on to other matters, so the answer judged
    is the first sentence of its output (:func:`~corsa_plugins.inference.cut_answer`); with a chat template, where the
    model ends its own turn, it is the whole output. The record keeps the output as it came.

    Args:
        model: A causal language model, or a ``PeftModel`` with the adapter to measure active. Its weights and the
            modes of its modules are left as they were.
        tokenizer: Its tokenizer.
        requests: What to ask about; may be empty if there are untouched facts.
        label: Which model and moment this is.
        untouched: Facts that no request is about, with their right answers; of an :class:`EditRequest` the prompt
            and ``target_new`` are taken, as a fact and its true answer.
        batch_size: Sequences per forward pass.
        max_new_tokens: Length of the outputs in tokens; by default that of the longest answer to be found, plus 16.
            Give it when comparing evaluations of different request files.
        chat_template: Ask through the tokenizer's chat template.
        progress: Show progress bars.

    Returns:
        One record per request, from which every metric follows.

    Raises:
        SettingError: There is nothing to evaluate, or a setting is out of range.
        TokenizationError: A prompt or a target gives no tokens, or there is no chat template.
    """
    probes = [_as_probe(fact) for fact in untouched or ()]
    if not requests and not probes:
        raise SettingError("nothing to evaluate: give requests, untouched facts, or both")

    asked = _Questions()
    for request in requests:
        answers = [request.target_new, *([request.target_old] if request.target_old else [])]
        for prompt in (request.prompt, *request.paraphrases):
            asked.add(prompt, answers)
    for probe in (p for r in requests for p in (*r.neighborhood, *r.portability)):
        asked.add(probe.prompt, [probe.answer] if probe.answer else [])
    for probe in probes:
        asked.add(probe.prompt, [probe.answer] if probe.answer else [])

    if max_new_tokens is None:
        targets = {target for _, target in asked.pairs}
        longest = max((len(tokenizer(target, add_special_tokens=False)["input_ids"]) for target in targets), default=0)
        max_new_tokens = longest + 16
    options: dict[str, Any] = {"batch_size": batch_size, "chat_template": chat_template, "progress": progress}
    prompts, pairs = list(asked.prompts), list(asked.pairs)
    generations = generate_answers(model, tokenizer, prompts, max_new_tokens=max_new_tokens, **options)
    outputs = {prompt: generation.text for prompt, generation in zip(prompts, generations, strict=True)}
    scores = dict(zip(pairs, score_targets(model, tokenizer, pairs, **options), strict=True))
    judge = _Judge(outputs, scores, whole_output=chat_template)

    records = tuple(
        Record(
            index=index,
            case_id=request.case_id,
            target_new=request.target_new,
            target_old=request.target_old,
            edit=judge.answer(request.prompt, request),
            paraphrases=tuple(judge.answer(prompt, request) for prompt in request.paraphrases),
            neighborhood=tuple(judge.probe(probe) for probe in request.neighborhood),
            portability=tuple(judge.probe(probe) for probe in request.portability),
        )
        for index, request in enumerate(requests)
    )
    settings = {"max_new_tokens": max_new_tokens, "chat_template": chat_template}
    return Evaluation(label, records, tuple(judge.probe(probe) for probe in probes), settings)


def _as_probe(fact: Probe | EditRequest) -> Probe:
    return Probe(prompt=fact.prompt, answer=fact.target_new) if isinstance(fact, EditRequest) else fact


class _Questions:
    """Prompts to generate from and (prompt, target) pairs to score, each once, in order."""

    def __init__(self) -> None:
        self.prompts: dict[str, None] = {}
        self.pairs: dict[tuple[str, str], None] = {}

    def add(self, prompt: str, targets: Iterable[str]) -> None:
        self.prompts[prompt] = None
        self.pairs.update({(prompt, target): None for target in targets})


@dataclass(frozen=True)
class _Judge:
    outputs: dict[str, str]
    scores: dict[tuple[str, str], TargetScore]
    whole_output: bool

    def says(self, prompt: str, target: str) -> bool:
        output = self.outputs[prompt]
        return contains_answer(output if self.whole_output else cut_answer(output), target)

    def answer(self, prompt: str, request: EditRequest) -> Answer:
        new = self.scores[prompt, request.target_new]
        old = self.scores[prompt, request.target_old] if request.target_old else None
        return Answer(
            prompt=prompt,
            output=self.outputs[prompt],
            says_new=self.says(prompt, request.target_new),
            says_old=self.says(prompt, request.target_old) if request.target_old else None,
            top1_new=new.top1,
            top1_old=old.top1 if old else None,
            log_prob_new=new.log_prob,
            log_prob_old=old.log_prob if old else None,
        )

    def probe(self, probe: Probe) -> ProbeAnswer:
        if probe.answer is None:
            return ProbeAnswer(prompt=probe.prompt, answer=None, output=self.outputs[probe.prompt])
        score = self.scores[probe.prompt, probe.answer]
        return ProbeAnswer(
            prompt=probe.prompt,
            answer=probe.answer,
            output=self.outputs[probe.prompt],
            says_answer=self.says(probe.prompt, probe.answer),
            top1=score.top1,
            log_prob=score.log_prob,
        )
