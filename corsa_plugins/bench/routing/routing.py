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
of the labels, and made in batches. Descriptions can tell parts apart that are about different things, and need a model
that follows instructions; :class:`NearestRouter` needs neither.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor

from corsa_plugins.bench.evaluation import Evaluation, Interval, Record, bootstrap_mean, evaluate
from corsa_plugins.bench.evaluation.evaluate import longest_target
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError, require
from corsa_plugins.model.architecture import accepts_logits_to_keep
from corsa_plugins.model.asking import eval_mode, generate_answers, score_targets
from corsa_plugins.model.loading import LoadingError
from corsa_plugins.model.tokenization import encode_prompt, join

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "NearestRouter",
    "Route",
    "RoutedEvaluation",
    "Router",
    "active_adapter",
    "evaluate_routed",
    "list_prompts",
    "list_subjects",
    "load_adapters",
    "request_template",
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


NEUTRAL = ("N/A", "[MASK]", "...")
"""Questions about nothing: what a label gets behind them is owed to the label (Zhao et al., 2021)."""


def split_requests(
    requests: Sequence[EditRequest], by: int | Callable[[EditRequest], Hashable], parts: int | None = None
) -> list[list[EditRequest]]:
    """Split requests into groups, each in the order of the requests.

    Args:
        requests: All of them.
        by: The number of parts, each of consecutive requests and of equal size up to one; or a function that gives
            what the requests of a group have in common: groups then come in the order of their first request.
        parts: With a function: put the groups together to so many parts, the largest first, each into the part that
            is smallest so far.

    Raises:
        SettingError: More parts than requests or groups, or less than one.
    """
    if callable(by):
        groups: dict[Hashable, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(by(request), []).append(place)
        found = list(groups.values())
        if parts is not None:
            if not 1 <= parts <= len(found):
                raise SettingError(f"{len(found)} groups cannot be put into {parts} parts: give 1 to {len(found)}")
            packed: list[list[int]] = [[] for _ in range(parts)]
            for group in sorted(found, key=len, reverse=True):
                min(packed, key=len).extend(group)
            found = sorted(sorted(part) for part in packed)
        return [[requests[place] for place in group] for group in found]
    if parts is not None:
        raise SettingError(f"parts is {parts} beside {by} parts: it goes with a function that makes the groups")
    if not 1 <= by <= len(requests):
        raise SettingError(f"{len(requests)} requests cannot be split into {by} parts: give 1 to {len(requests)}")
    ends = [len(requests) * part // by for part in range(by + 1)]
    return [list(requests[start:end]) for start, end in itertools.pairwise(ends)]


def request_template(request: EditRequest) -> str:
    """The prompt without its subject, ``"The capital of {} is"``: what requests of one relation often share.

    Raises:
        SettingError: The request has no subject.
    """
    if request.subject is None:
        raise SettingError(f"{request.name()} has no subject: give it one, or split by something else")
    return request.prompt.replace(request.subject, "{}")


def list_prompts(requests: Sequence[EditRequest], count: int = 8) -> str:
    """A description of a group that needs no model: some of its prompts, evenly spaced, as they are.

    Raises:
        SettingError: There are no requests, or ``count`` is not positive.
    """
    return "; ".join(_spread([request.prompt for request in requests], count))


def list_subjects(requests: Sequence[EditRequest], count: int = 50) -> str:
    """A description of a group that needs no model: its subjects, or some of them, evenly spaced.

    Raises:
        SettingError: A request has no subject, or there are no requests, or ``count`` is not positive.
    """
    without = next((request for request in requests if request.subject is None), None)
    if without is not None:
        raise SettingError(f"{without.name()} has no subject: give it one, or describe by prompts")
    return ", ".join(_spread([str(request.subject) for request in requests], count))


def _spread(texts: Sequence[str], count: int) -> list[str]:
    if not texts or count < 1:
        raise SettingError(f"{count} prompts of {len(texts)} requests describe nothing: give at least one of each")
    texts = list(dict.fromkeys(" ".join(text.split()) for text in texts))
    shown = min(count, len(texts))
    return [texts[len(texts) * place // shown] for place in range(shown)]


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
    prompts = "\n".join(_spread([request.prompt for request in requests], count))
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
        labels: One for each adapter; by default ``A``, ``B``, ..., which most vocabularies have as one token, also
            behind a space. Labels of one token cost one forward pass for all of them.
        calibrate: With labels: take from each one's score what it gets when nothing is asked (contextual calibration;
            Zhao et al., 2021), for models that prefer a label whatever the question.
        chat_template: Ask through the chat template.
        batch_size: Sequences per forward pass.

    Raises:
        SettingError: No descriptions, a template without its places, labels that cannot be told apart, or
            ``calibrate`` without labels.
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
        calibrate: bool = False,
        chat_template: bool = False,
        batch_size: int = 64,
    ) -> None:
        if not descriptions or not all(description.strip() for description in descriptions):
            raise SettingError("every adapter needs a description: give one each, none of them blank")
        if how not in ("label", "question"):
            raise SettingError(f"how is {how!r}: choose 'label' or 'question'")
        if calibrate and how != "label":
            raise SettingError("calibrate is for labels: a question is scored behind every description alike")
        _check_template(template, "descriptions", "question")
        self.model = model
        self.tokenizer = tokenizer
        self.descriptions = list(descriptions)
        self.template = template
        self.how = how
        self.calibrate = calibrate
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
        """For each question, a log-probability for each adapter, in nats; with ``calibrate``, its gain by the question.

        Raises:
            SettingError: What is to be read is longer than the model's context.
        """
        found = self._log_probs(questions)
        if not self.calibrate or not questions:
            return found
        neutral = [sum(column) / len(NEUTRAL) for column in zip(*self._log_probs(NEUTRAL), strict=True)]
        return [[score - bias for score, bias in zip(row, neutral, strict=True)] for row in found]

    def _log_probs(self, questions: Sequence[str]) -> list[list[float]]:
        if self.how == "label":
            pairs = [(self.prompt(question), label) for question in questions for label in self.labels]
        else:
            pairs = [(f"{text}\n", question) for question in questions for text in self.descriptions]
        self._check_length(pairs)
        if self.how == "label" and (quick := self._one_pass(pairs)) is not None:
            return quick
        with _base_only(self.model):
            found = [score.log_prob for score in score_targets(self.model, self.tokenizer, pairs, **self.options)]
        width = len(self.labels)
        return [found[start : start + width] for start in range(0, len(found), width)]

    def _one_pass(self, pairs: Sequence[tuple[str, str]]) -> list[list[float]] | None:
        """Labels of one token each, of one forward pass for all of them; ``None`` where a label has more."""
        joined = [join(self.tokenizer, *pair, self.options["chat_template"]) for pair in pairs]
        if any(len(row.target_ids) > 1 for row in joined):
            return None
        width = len(self.labels)
        rows = [row.prompt_ids for row in joined[::width]]
        tokens = sorted({row.target_ids[0] for row in joined})

        def log_probs(output: Any) -> Tensor:
            logits = output.logits[:, -1]
            return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)[:, tokens]

        columns = {token: column for column, token in enumerate(tokens)}
        found = _last_positions(self.model, rows, self.options["batch_size"], log_probs)
        return [
            [float(row[columns[one.target_ids[0]]]) for one in joined[place * width : (place + 1) * width]]
            for place, row in enumerate(found)
        ]

    def _check_length(self, pairs: Sequence[tuple[str, str]]) -> None:
        longest = max(pairs, key=lambda pair: len(pair[0]) + len(pair[1]), default=None)
        room = getattr(self.model.config, "max_position_embeddings", None)
        if longest is None or not isinstance(room, int):
            return
        length = len(encode_prompt(self.tokenizer, f"{longest[0]} {longest[1]}", self.options["chat_template"]))
        if length > room:
            raise SettingError(
                f"the router reads {length} tokens to place a question, and the model has room for {room}: shorten the "
                "descriptions"
            )

    def route(self, questions: Sequence[str]) -> list[int]:
        """For each question the index of its adapter; the first of equals."""
        return _best(self.scores(questions))


class NearestRouter:
    """Chooses the adapter of the request that the base model takes to be nearest to the question.

    Every edit prompt, and every question, is represented by the base model's hidden state at its last position, where
    the answer is about to come, less the mean over the edit prompts. The score of an adapter is the largest cosine of
    the question with any of its requests. Not of the CoRSA paper: descriptions cannot tell parts apart that are about
    the same kinds of things, as parts in order of time often are, and small or base models do not follow the paper's
    instruction.

    Args:
        model: The base model, or a ``PeftModel``, whose adapters are switched off to ask.
        tokenizer: Its tokenizer.
        groups: The requests of each adapter; only their edit prompts are read.
        template: Put around prompts and questions alike, with ``{question}``; for instance a phrase that makes both end
            in the same words.
        layer: Behind which block, counted from 1, the hidden state is taken; by default two thirds of the way up.
        chat_template: Ask through the chat template.
        batch_size: Sequences per forward pass.

    Raises:
        SettingError: There are no groups, or one is empty; a template without its place; no such layer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        groups: Sequence[Sequence[EditRequest]],
        *,
        template: str = "{question}",
        layer: int | None = None,
        chat_template: bool = False,
        batch_size: int = 64,
    ) -> None:
        if not groups or not all(groups):
            raise SettingError("every adapter needs requests to be near to: give some for each")
        _check_template(template, "question")
        blocks = int(model.config.get_text_config().num_hidden_layers)
        self.model = model
        self.tokenizer = tokenizer
        self.template = template
        self.layer = max(1, round(2 * blocks / 3)) if layer is None else layer
        if not 1 <= self.layer <= blocks:
            raise SettingError(f"layer is {layer}: the model has blocks 1 to {blocks}")
        self.chat_template = chat_template
        self.batch_size = batch_size
        self.labels = [str(place) for place in range(1, len(groups) + 1)]
        states = self._states([request.prompt for group in groups for request in group])
        self._mean = states.mean(0)
        self._prompts = _unit(states - self._mean)
        self._ends = list(itertools.accumulate(len(group) for group in groups))

    def scores(self, questions: Sequence[str]) -> list[list[float]]:
        """For each question, for each adapter, the cosine with its nearest request."""
        if not questions:
            return []
        cosines = _unit(self._states(questions) - self._mean) @ self._prompts.T
        starts = [0, *self._ends[:-1]]
        columns = [cosines[:, start:end].amax(1) for start, end in zip(starts, self._ends, strict=True)]
        scores: list[list[float]] = torch.stack(columns, 1).tolist()
        return scores

    def route(self, questions: Sequence[str]) -> list[int]:
        """For each question the index of its adapter; the first of equals."""
        return _best(self.scores(questions))

    def _states(self, questions: Sequence[str]) -> Tensor:
        """(questions, hidden size) in float64, on the CPU."""
        texts = [self.template.replace("{question}", question) for question in questions]
        rows = [encode_prompt(self.tokenizer, text, self.chat_template) for text in texts]
        return torch.stack(
            _last_positions(
                self.model, rows, self.batch_size, lambda output: output.hidden_states[self.layer][:, -1].double(), True
            )
        )


def _last_positions(
    model: Any, rows: Sequence[list[int]], batch_size: int, take: Callable[[Any], Tensor], states: bool = False
) -> list[Tensor]:
    """What ``take`` finds in the base model's outputs for the last position of each row; on the CPU, float32 or wider.

    A batch is of rows of one length: nothing is padded, so the last position is the same in all of them.
    """
    keep = {"logits_to_keep": 1} if accepts_logits_to_keep(_inner(model)) else {}
    device = next(model.get_input_embeddings().parameters()).device
    by_length: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        by_length.setdefault(len(row), []).append(place)
    found: dict[int, Tensor] = {}
    with _base_only(model), eval_mode(model):
        for places in by_length.values():
            for start in range(0, len(places), batch_size):
                chosen = places[start : start + batch_size]
                ids = torch.tensor([rows[place] for place in chosen], device=device)
                output = model(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    use_cache=False,
                    output_hidden_states=states,
                    **keep,
                )
                taken = take(output)
                taken = taken.to("cpu", torch.promote_types(taken.dtype, torch.float32))
                found.update(zip(chosen, taken, strict=True))
    return [found[place] for place in range(len(rows))]


class _AnyRouter(Protocol):
    @property
    def labels(self) -> Sequence[str]: ...

    def route(self, questions: Sequence[str]) -> list[int]: ...


def _best(scores: Sequence[Sequence[float]]) -> list[int]:
    return [max(range(len(row)), key=row.__getitem__) for row in scores]


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=-1)


def _inner(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def routing_accuracy(routed: Sequence[int], true: Sequence[int], unit: Sequence[Hashable] | None = None) -> Interval:
    """Share of questions sent to the right adapter, with its 95 % bootstrap interval.

    Args:
        routed: The adapter of each question.
        true: The right one.
        unit: What each question is about. Questions about one thing stand and fall together: their mean is then one
            value of the interval, and the share is the mean over things. By default each question stands for itself.

    Raises:
        SettingError: There are no questions, or not as many of one as of the other.
    """
    if not routed or len(routed) != len(true) or (unit is not None and len(unit) != len(true)):
        raise SettingError(f"{len(routed)} routes for {len(true)} questions: give one for each, and at least one")
    right: dict[Hashable, list[float]] = {}
    for place, (one, other) in enumerate(zip(routed, true, strict=True)):
        right.setdefault(place if unit is None else unit[place], []).append(float(one == other))
    return bootstrap_mean([sum(values) / len(values) for values in right.values()])


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
class Route:
    """Where one prompt of a request was sent.

    Attributes:
        index: Of the request, over all groups.
        field: ``"prompt"``, ``"paraphrases"``, ``"neighborhood"`` or ``"portability"``.
        number: Of the prompt in its field.
        prompt: What was asked.
        true: The place of the request's adapter.
        chosen: The place of the adapter that answered.
    """

    index: int
    field: str
    number: int
    prompt: str
    true: int
    chosen: int


@dataclass(frozen=True)
class RoutedEvaluation:
    """Several adapters measured as one model.

    Attributes:
        evaluation: Of all requests, group after group, each prompt answered by the adapter it was sent to.
        routes: Of every prompt, in the order of the requests.
    """

    evaluation: Evaluation
    routes: tuple[Route, ...]

    @property
    def accuracy(self) -> Interval:
        """Share of a request's edit prompt and paraphrases sent to its adapter, mean over requests."""
        return self.accuracy_of(("prompt", "paraphrases"))

    def accuracy_of(self, fields: Sequence[str], group: int | None = None) -> Interval:
        """The same for prompts of some fields, and of one group's requests.

        Raises:
            SettingError: There are none.
        """
        own = [route for route in self.routes if route.field in fields and group in (None, route.true)]
        return routing_accuracy(
            [route.chosen for route in own], [route.true for route in own], [route.index for route in own]
        )


def evaluate_routed(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    groups: Sequence[Sequence[EditRequest]],
    adapters: Sequence[str],
    router: _AnyRouter | None = None,
    *,
    label: str | None = None,
    max_new_tokens: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
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
        max_new_tokens: As for :func:`~corsa_plugins.bench.evaluation.evaluate`.
        checkpoint: A folder for what is answered so far, a file for each adapter, as for
            :func:`~corsa_plugins.bench.evaluation.evaluate`.
        options: As for :func:`~corsa_plugins.bench.evaluation.evaluate`, but for ``untouched``.

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
    if "untouched" in options:
        raise SettingError("untouched: not for several adapters; evaluate each of them by itself")
    requests = [request for group in groups for request in group]
    if not requests:
        raise SettingError("nothing to evaluate: give requests")
    if max_new_tokens is None:
        max_new_tokens = longest_target(tokenizer, requests) + 16
    true = [place for place, group in enumerate(groups) for _ in group]
    routes = _routes(requests, true, router)
    by_request: list[list[Route]] = [[] for _ in requests]
    for route in routes:
        by_request[route.index].append(route)
    answered: dict[tuple[int, int], Record] = {}
    settings = None
    for place, name in enumerate(adapters):
        asked = [index for index, own in enumerate(by_request) if any(route.chosen == place for route in own)]
        if not asked:
            continue
        with active_adapter(model, name):
            found = evaluate(
                model,
                tokenizer,
                [_part(requests[index], by_request[index], place) for index in asked],
                max_new_tokens=max_new_tokens,
                checkpoint=None if checkpoint is None else Path(checkpoint) / f"adapter-{place + 1}.jsonl",
                **options,
            )
        settings = found.settings
        answered.update({(place, index): record for index, record in zip(asked, found.records, strict=True)})
    records = tuple(_stitch(index, own, answered) for index, own in enumerate(by_request))
    name = label or ("routed" if router else "true choice of adapter")
    return RoutedEvaluation(Evaluation(name, records, (), settings), tuple(routes))


_FIELDS = ("paraphrases", "neighborhood", "portability")


def _routes(requests: Sequence[EditRequest], true: Sequence[int], router: _AnyRouter | None) -> list[Route]:
    """Of every prompt of every request."""
    routes = []
    for index, (request, place) in enumerate(zip(requests, true, strict=True)):
        asked = {
            "prompt": [request.prompt],
            "paraphrases": list(request.paraphrases),
            "neighborhood": [probe.prompt for probe in request.neighborhood],
            "portability": [probe.prompt for probe in request.portability],
        }
        for field, prompts in asked.items():
            routes += [Route(index, field, number, prompt, place, place) for number, prompt in enumerate(prompts)]
    if router is None:
        return routes
    questions = list(dict.fromkeys(route.prompt for route in routes))
    chosen = dict(zip(questions, router.route(questions), strict=True))
    return [replace(route, chosen=chosen[route.prompt]) for route in routes]


def _part(request: EditRequest, routes: Sequence[Route], place: int) -> EditRequest:
    """The request with those of its prompts that are sent to one adapter; its edit prompt in any case."""
    kept = {
        field: tuple(
            getattr(request, field)[route.number] for route in routes if route.field == field and route.chosen == place
        )
        for field in _FIELDS
    }
    return request.model_copy(update=kept)


def _stitch(index: int, routes: Sequence[Route], answered: Mapping[tuple[int, int], Record]) -> Record:
    """The record of a request, each prompt's answer from the adapter it was sent to."""
    # The answers of one adapter to the prompts of a field come in the order of the prompts.
    answers = {
        (place, field): iter(getattr(answered[place, index], field))
        for place in {route.chosen for route in routes}
        for field in _FIELDS
    }
    parts = {
        field: tuple(next(answers[route.chosen, field]) for route in routes if route.field == field)
        for field in _FIELDS
    }
    edit = next(route.chosen for route in routes if route.field == "prompt")
    return answered[edit, index].model_copy(update={"index": index, **parts})


def load_adapters(model: PreTrainedModel, adapters: Sequence[str | os.PathLike[str]]) -> tuple[Any, list[str]]:
    """Put several PEFT adapters on one model.

    Args:
        model: The base model.
        adapters: Folders, or names on the Hub.

    Returns:
        The ``PeftModel``, in evaluation mode, the first adapter active; and the adapters' names in it, ``"1"``,
        ``"2"``, ... in their order.

    Raises:
        LoadingError: There is no such adapter, or it is not one of this model.
        SettingError: There are none.
        MissingExtraError: PEFT is not installed.
    """
    peft: Any = require("peft", "trl", what="several adapters")
    if not adapters:
        raise SettingError("no adapters: give at least one")
    loaded: Any = None
    names = [str(place) for place in range(1, len(adapters) + 1)]
    for name, adapter in zip(names, adapters, strict=True):
        path = os.path.expanduser(os.fspath(adapter))
        try:
            if loaded is None:
                loaded = peft.PeftModel.from_pretrained(model, path, adapter_name=name)
            else:
                loaded.load_adapter(path, adapter_name=name)
        except (OSError, ValueError, RuntimeError) as error:
            raise LoadingError(
                f"adapter {os.fspath(adapter)} cannot be put on the model: {error}; is it an adapter of this model?"
            ) from error
    loaded.set_adapter(names[0])
    return loaded.eval(), names


@contextlib.contextmanager
def active_adapter(model: Any, name: str) -> Iterator[None]:
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
    return [chr(ord("A") + place) for place in range(count)]


def _check_template(template: str, *places: str) -> None:
    missing = [f"{{{place}}}" for place in places if f"{{{place}}}" not in template]
    if missing:
        raise SettingError(f"the template has no {' and no '.join(missing)}: put it where the text is to go")
