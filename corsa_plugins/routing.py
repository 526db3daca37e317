"""Several adapters, one for each part of the knowledge, and a question sent to the one that knows (CoRSA paper, B.2).

The requests are split into groups and an adapter is trained on each. At inference the base model is shown a description
of every group and the question, and its choice decides which adapter answers::

    groups = split_requests(requests, 5)
    for name, group in zip(names, groups):
        train(group, name)                      # any trainer of LoRA adapters
    router = Router(model, tokenizer, [list_prompts(group) for group in groups])
    routed = evaluate_routed(model, tokenizer, groups, names, router)
    best = evaluate_routed(model, tokenizer, groups, names)      # the true choice

The choice is read off the log-probabilities of the labels, not off a generated answer: it is deterministic, always one
of the labels, and made in batches.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from corsa_plugins.errors import SettingError, require
from corsa_plugins.evaluation import Evaluation, Interval, Record, bootstrap_mean, evaluate
from corsa_plugins.evaluation.evaluate import longest_target
from corsa_plugins.inference import generate_answers, score_targets
from corsa_plugins.requests import EditRequest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "RoutedEvaluation",
    "Router",
    "evaluate_routed",
    "list_prompts",
    "routing_accuracy",
    "routing_share_of_gap",
    "split_requests",
    "summarise",
]

TEMPLATE = """\
Each of these collections answers questions of one kind.

{descriptions}

Which collection answers this question?
Question: {question}
Collection:"""

SUMMARY_TEMPLATE = """\
{prompts}

In one sentence, the kinds of things and of relations that the questions above are about:"""


def split_requests(
    requests: Sequence[EditRequest], by: int | Callable[[EditRequest], Hashable]
) -> list[list[EditRequest]]:
    """Split requests into groups, each in the order of the requests.

    Args:
        requests: All of them.
        by: The number of parts, each of consecutive requests and of equal size up to one; or a function that gives
            what the requests of a group have in common: groups then come in the order of their first request.

    Raises:
        SettingError: More parts than requests, or less than one.
    """
    if callable(by):
        groups: dict[Hashable, list[EditRequest]] = {}
        for request in requests:
            groups.setdefault(by(request), []).append(request)
        return list(groups.values())
    if not 1 <= by <= len(requests):
        raise SettingError(f"{len(requests)} requests cannot be split into {by} parts: give 1 to {len(requests)}")
    ends = [len(requests) * part // by for part in range(by + 1)]
    return [list(requests[start:end]) for start, end in itertools.pairwise(ends)]


def list_prompts(requests: Sequence[EditRequest], count: int = 8) -> str:
    """A description of a group that needs no model: some of its prompts, evenly spaced, as they are.

    Raises:
        SettingError: There are no requests, or ``count`` is not positive.
    """
    return "; ".join(_spread(requests, count))


def _spread(requests: Sequence[EditRequest], count: int) -> list[str]:
    if not requests or count < 1:
        raise SettingError(f"{count} prompts of {len(requests)} requests describe nothing: give at least one of each")
    prompts = list(dict.fromkeys(" ".join(request.prompt.split()) for request in requests))
    shown = min(count, len(prompts))
    return [prompts[len(prompts) * place // shown] for place in range(shown)]


def summarise(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    *,
    template: str = SUMMARY_TEMPLATE,
    count: int = 30,
    max_new_tokens: int = 80,
    chat_template: bool = False,
) -> str:
    """A description of a group in the base model's own words, as in the paper; :func:`list_prompts` if it says nothing.

    Args:
        template: With ``{prompts}`` where the prompts go, one on a line.
        count: How many prompts it is shown, evenly spaced.
        max_new_tokens: Length of the description in tokens.

    Raises:
        SettingError: No requests, or no ``{prompts}`` in the template.
    """
    _check_template(template, "prompts")
    prompts = "\n".join(_spread(requests, count))
    with _base_only(model):
        (said,) = generate_answers(
            model,
            tokenizer,
            [template.replace("{prompts}", prompts)],
            max_new_tokens=max_new_tokens,
            chat_template=chat_template,
        )
    return " ".join(said.text.split()) or list_prompts(requests)


class Router:
    """Chooses one of several adapters for a question by asking the base model.

    Args:
        model: The base model, or a ``PeftModel``, whose adapters are switched off to ask.
        tokenizer: Its tokenizer.
        descriptions: One for each adapter.
        template: With ``{descriptions}`` and ``{question}``.
        how: ``"label"`` (the paper's): the most probable label behind the template. ``"question"``: the description
            behind which the question itself is most probable; for base models that follow no instructions. The
            template is not used then.
        labels: One for each adapter; by default ``1`` to ``9``, or from ``A`` where there are more.
        chat_template: Ask through the chat template.
        batch_size: Sequences per forward pass.

    Raises:
        SettingError: No descriptions, a template without its places, or labels that cannot be told apart.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        descriptions: Sequence[str],
        template: str = TEMPLATE,
        *,
        how: Literal["label", "question"] = "label",
        labels: Sequence[str] | None = None,
        chat_template: bool = False,
        batch_size: int = 64,
    ) -> None:
        if not descriptions or not all(description.strip() for description in descriptions):
            raise SettingError("every adapter needs a description: give one each, none of them blank")
        if how not in ("label", "question"):
            raise SettingError(f"how is {how!r}: choose 'label' or 'question'")
        _check_template(template, "descriptions", "question")
        self.model = model
        self.tokenizer = tokenizer
        self.descriptions = list(descriptions)
        self.template = template
        self.how = how
        self.labels = _labels(len(descriptions)) if labels is None else list(labels)
        self.options: dict[str, Any] = {"chat_template": chat_template, "batch_size": batch_size}
        if len(self.labels) != len(descriptions):
            raise SettingError(f"{len(self.labels)} labels for {len(descriptions)} descriptions: give one each")
        for place, label in enumerate(self.labels):
            others = self.labels[:place] + self.labels[place + 1 :]
            if not label.strip() or any(other.startswith(label) for other in others):
                raise SettingError(f"label {label!r} is blank, or another begins with it: they cannot be told apart")

    def prompt(self, question: str) -> str:
        """What the base model is asked about a question, with ``how="label"``."""
        listed = "\n".join(f"{label}: {text}" for label, text in zip(self.labels, self.descriptions, strict=True))
        # the question last, so that braces in it, or in a description, stay what they are
        before, after = self.template.split("{question}", 1)
        return before.replace("{descriptions}", listed) + question + after.replace("{descriptions}", listed)

    def scores(self, questions: Sequence[str]) -> list[list[float]]:
        """For each question, a log-probability for each adapter, in nats."""
        if self.how == "label":
            pairs = [(self.prompt(question), label) for question in questions for label in self.labels]
        else:
            pairs = [(f"{text}\n", question) for question in questions for text in self.descriptions]
        with _base_only(self.model):
            found = [score.log_prob for score in score_targets(self.model, self.tokenizer, pairs, **self.options)]
        width = len(self.labels)
        return [found[start : start + width] for start in range(0, len(found), width)]

    def route(self, questions: Sequence[str]) -> list[int]:
        """For each question the index of its adapter; the first of equals."""
        return [max(range(len(row)), key=row.__getitem__) for row in self.scores(questions)]


def routing_accuracy(routed: Sequence[int], true: Sequence[int]) -> Interval:
    """Share of questions sent to the right adapter, with its 95 % bootstrap interval.

    Raises:
        SettingError: There are no questions, or not as many of one as of the other.
    """
    if not routed or len(routed) != len(true):
        raise SettingError(f"{len(routed)} routes for {len(true)} questions: give one for each, and at least one")
    return bootstrap_mean([float(a == b) for a, b in zip(routed, true, strict=True)])


def routing_share_of_gap(single: float, true: float, routed: float) -> float | None:
    """Which share of what several adapters lose to a single one is lost by routing (CoRSA paper, B.2: 94.61 %).

    Args:
        single: A metric's mean with one adapter for all requests, the upper bound.
        true: With several adapters and the true choice.
        routed: With several adapters and the router's choice.

    Returns:
        (true - routed) / (single - routed); ``None`` if nothing is lost.
    """
    return (true - routed) / (single - routed) if single > routed else None


@dataclass(frozen=True)
class RoutedEvaluation:
    """Several adapters measured as one model.

    Attributes:
        evaluation: Of all requests, group after group, each prompt answered by the adapter it was sent to.
        accuracy: Share of the edit prompts and paraphrases sent to the adapter of their group.
    """

    evaluation: Evaluation
    accuracy: Interval


def evaluate_routed(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    groups: Sequence[Sequence[EditRequest]],
    adapters: Sequence[str],
    router: Router | None = None,
    *,
    label: str | None = None,
    max_new_tokens: int | None = None,
    **options: Any,
) -> RoutedEvaluation:
    """Measure adapters of groups of requests as one model. Every prompt, of a probe too, is routed by itself.

    Args:
        model: A ``PeftModel`` that holds all the adapters; the one that is active stays it.
        tokenizer: Its tokenizer.
        groups: The requests of each adapter.
        adapters: Their names in the model, in the order of the groups and of the router's descriptions.
        router: Chooses; ``None`` for the true choice, the adapter of the request's group.
        label: Of the evaluation.
        max_new_tokens: As for :func:`~corsa_plugins.evaluation.evaluate`.
        options: As for :func:`~corsa_plugins.evaluation.evaluate`, but for ``untouched`` and ``checkpoint``.

    Raises:
        SettingError: Not as many adapters as groups, one that the model lacks, or nothing to evaluate.
        MissingExtraError: PEFT is not installed.
    """
    peft = require("peft", "trl", what="evaluating adapters")
    if not isinstance(model, peft.PeftModel):
        raise SettingError("the model has no adapters: load them all into one PeftModel")
    missing = [name for name in adapters if name not in model.peft_config]
    if missing or len(adapters) != len(groups) or (router is not None and len(router.labels) != len(groups)):
        raise SettingError(
            f"{len(groups)} groups and adapters {list(adapters)}, of which the model lacks {missing}: name one adapter "
            "of the model for each group, and describe each to the router"
        )
    unfit = {"untouched", "checkpoint"} & set(options)
    if unfit:
        raise SettingError(f"{', '.join(sorted(unfit))}: not for several adapters; evaluate each of them by itself")
    true = [place for place, group in enumerate(groups) for _ in group]
    requests = [request for group in groups for request in group]
    if max_new_tokens is None:
        max_new_tokens = longest_target(tokenizer, requests) + 16
    routes = _routes(requests, true, router)
    answered: dict[tuple[int, int], Record] = {}
    settings = None
    for place, name in enumerate(adapters):
        asked = [index for index, route in enumerate(routes) if place in route.values()]
        if not asked:
            continue
        with _active(model, name):
            found = evaluate(
                model, tokenizer, [requests[index] for index in asked], max_new_tokens=max_new_tokens, **options
            )
        settings = found.settings
        answered.update({(place, index): record for index, record in zip(asked, found.records, strict=True)})
    if settings is None:
        raise SettingError("nothing to evaluate: give requests")
    records = tuple(_stitch(index, route, answered) for index, route in enumerate(routes))
    own = [(route[key], place) for route, place in zip(routes, true, strict=True) for key in route if key[0] in "ep"]
    name = label or ("routed" if router else "true choice of adapter")
    return RoutedEvaluation(
        Evaluation(name, records, (), settings), routing_accuracy([a for a, _ in own], [b for _, b in own])
    )


_FIELDS = {"p": "paraphrases", "n": "neighborhood", "f": "portability"}
_Key = tuple[str, int]


def _routes(requests: Sequence[EditRequest], true: Sequence[int], router: Router | None) -> list[dict[_Key, int]]:
    """For each request, the adapter of each of its prompts: the edit prompt, and those of the fields by number."""
    prompts: list[dict[_Key, str]] = []
    for request in requests:
        own = {("e", 0): request.prompt}
        own |= {("p", number): prompt for number, prompt in enumerate(request.paraphrases)}
        own |= {("n", number): probe.prompt for number, probe in enumerate(request.neighborhood)}
        own |= {("f", number): probe.prompt for number, probe in enumerate(request.portability)}
        prompts.append(own)
    if router is None:
        return [dict.fromkeys(own, place) for own, place in zip(prompts, true, strict=True)]
    questions = list(dict.fromkeys(prompt for own in prompts for prompt in own.values()))
    chosen = dict(zip(questions, router.route(questions), strict=True)) if questions else {}
    return [{key: chosen[prompt] for key, prompt in own.items()} for own in prompts]


def _stitch(index: int, route: dict[_Key, int], answered: dict[tuple[int, int], Record]) -> Record:
    """The record of a request, each prompt's answer from the adapter it was sent to."""
    record = answered[route["e", 0], index]
    parts = {
        field: tuple(
            getattr(answered[place, index], field)[number] for (kind, number), place in route.items() if kind == letter
        )
        for letter, field in _FIELDS.items()
    }
    return record.model_copy(update={"index": index, **parts})


@contextlib.contextmanager
def _active(model: Any, name: str) -> Iterator[None]:
    """Adapter ``name`` active; which one was, and what requires gradients, is as it was afterwards."""
    before = list(model.active_adapters)
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.set_adapter(name)
        yield
    finally:
        model.base_model.set_adapter(before)
        model.active_adapter = before[0]
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextlib.contextmanager
def _base_only(model: Any) -> Iterator[None]:
    """The adapters switched off, if there are any; what requires gradients is as it was afterwards."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    switched_off = model.disable_adapter() if hasattr(model, "peft_config") else contextlib.nullcontext()
    try:
        with switched_off:
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _labels(count: int) -> list[str]:
    if count > 26:
        raise SettingError(f"{count} adapters: give labels of your own, none of which begins another")
    return [chr(ord("1" if count < 10 else "A") + place) for place in range(count)]


def _check_template(template: str, *places: str) -> None:
    missing = [f"{{{place}}}" for place in places if f"{{{place}}}" not in template]
    if missing:
        raise SettingError(f"the template has no {' and no '.join(missing)}: put it where the text is to go")
