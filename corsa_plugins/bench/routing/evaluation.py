"""Several adapters measured as one model: every prompt is answered by the adapter that it is sent to."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corsa_plugins.bench.evaluation import Evaluation, Interval, Record, evaluate
from corsa_plugins.bench.evaluation.prompts import answer_length
from corsa_plugins.bench.routing.accuracy import routing_accuracy
from corsa_plugins.bench.routing.router import Router
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError, require
from corsa_plugins.model.borrowing import active_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Route", "RoutedEvaluation", "evaluate_routed"]


@dataclass(frozen=True)
class Route:
    """Where one prompt of a request was sent.

    Attributes:
        index: Of the request, over all parts.
        field: ``"prompt"``, ``"paraphrases"``, ``"neighborhood"`` or ``"portability"``.
        number: Of the prompt in its field.
        prompt: What was asked.
        true: The index of the request's adapter.
        chosen: The index of the adapter that answered.
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
        evaluation: Of all requests, part after part, each prompt answered by the adapter it was sent to.
        routes: Of every prompt, in the order of the requests.
    """

    evaluation: Evaluation
    routes: tuple[Route, ...]

    @property
    def accuracy(self) -> Interval:
        """Share of a request's edit prompt and paraphrases sent to its adapter, mean over requests."""
        return self.accuracy_of(("prompt", "paraphrases"))

    def accuracy_of(self, fields: Sequence[str], part: int | None = None) -> Interval:
        """The same for prompts of some fields, and of one part's requests.

        Raises:
            SettingError: There are none.
        """
        routes = [route for route in self.routes if route.field in fields and part in (None, route.true)]
        return routing_accuracy(
            [route.chosen for route in routes], [route.true for route in routes], [route.index for route in routes]
        )


def evaluate_routed(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    parts: Sequence[Sequence[EditRequest]],
    adapters: Sequence[str],
    router: Router | None = None,
    *,
    label: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    **options: Any,
) -> RoutedEvaluation:
    """Measure adapters of parts of the requests as one model. Every prompt, of a probe too, is routed by itself.

    Args:
        model: A ``PeftModel`` that holds all the adapters; the one that is active stays it.
        tokenizer: Its tokenizer.
        parts: The requests of each adapter.
        adapters: Their names in the model, in the order of the parts and of the router's descriptions.
        router: Chooses; ``None`` for the true choice, the adapter of the request's part.
        label: Of the evaluation.
        checkpoint: A folder for what is answered so far, a file for each adapter, as for
            :func:`~corsa_plugins.bench.evaluation.evaluate`.
        options: As for :func:`~corsa_plugins.bench.evaluation.evaluate`, but for ``untouched``.

    Raises:
        SettingError: Not as many adapters as parts, one that the model lacks, or nothing to evaluate.
        MissingExtraError: PEFT is not installed.
    """
    _check_adapters(model, parts, adapters, router)
    if "untouched" in options:
        raise SettingError("untouched: not for several adapters; evaluate each of them by itself")
    requests = [request for part in parts for request in part]
    if not requests:
        raise SettingError("nothing to evaluate: give requests")
    if options.get("max_new_tokens") is None:
        options["max_new_tokens"] = answer_length(tokenizer, requests)
    true = [adapter for adapter, part in enumerate(parts) for _ in part]
    routes = _routes(requests, true, router)
    by_request: list[list[Route]] = [[] for _ in requests]
    for route in routes:
        by_request[route.index].append(route)
    answered: dict[tuple[int, int], Record] = {}
    settings = None
    for adapter, name in enumerate(adapters):
        sent = [index for index, own in enumerate(by_request) if any(route.chosen == adapter for route in own)]
        if not sent:
            continue
        with active_adapter(model, name):
            evaluation = evaluate(
                model,
                tokenizer,
                [_prompts_sent_to(adapter, requests[index], by_request[index]) for index in sent],
                checkpoint=None if checkpoint is None else Path(checkpoint) / f"adapter-{adapter + 1}.jsonl",
                **options,
            )
        settings = evaluation.settings
        answered.update({(adapter, index): record for index, record in zip(sent, evaluation.records, strict=True)})
    records = tuple(_stitch(index, own, answered) for index, own in enumerate(by_request))
    name = label or ("routed" if router else "true choice of adapter")
    return RoutedEvaluation(Evaluation(name, records, (), settings), tuple(routes))


def _check_adapters(
    model: Any, parts: Sequence[Sequence[EditRequest]], adapters: Sequence[str], router: Router | None
) -> None:
    peft = require("peft", "trl", what="evaluating adapters")
    if not isinstance(model, peft.PeftModel):
        raise SettingError("the model has no adapters: load them all into one PeftModel")
    missing = [name for name in adapters if name not in model.peft_config]
    if missing or len(adapters) != len(parts) or (router is not None and len(router.labels) != len(parts)):
        raise SettingError(
            f"{len(parts)} parts and adapters {list(adapters)}, of which the model lacks {missing}: name one adapter "
            "of the model for each part, and describe each to the router"
        )


_FIELDS = ("paraphrases", "neighborhood", "portability")


def _routes(requests: Sequence[EditRequest], true: Sequence[int], router: Router | None) -> list[Route]:
    """Of every prompt of every request."""
    routes = []
    for index, (request, adapter) in enumerate(zip(requests, true, strict=True)):
        by_field = {
            "prompt": [request.prompt],
            "paraphrases": list(request.paraphrases),
            "neighborhood": [probe.prompt for probe in request.neighborhood],
            "portability": [probe.prompt for probe in request.portability],
        }
        for field, prompts in by_field.items():
            routes += [Route(index, field, number, prompt, adapter, adapter) for number, prompt in enumerate(prompts)]
    if router is None:
        return routes
    questions = list(dict.fromkeys(route.prompt for route in routes))
    chosen = dict(zip(questions, router.route(questions), strict=True))
    return [replace(route, chosen=chosen[route.prompt]) for route in routes]


def _prompts_sent_to(adapter: int, request: EditRequest, routes: Sequence[Route]) -> EditRequest:
    """The request with those of its prompts that are sent to one adapter; its edit prompt in any case."""
    kept = {
        field: tuple(
            getattr(request, field)[route.number]
            for route in routes
            if route.field == field and route.chosen == adapter
        )
        for field in _FIELDS
    }
    return request.model_copy(update=kept)


def _stitch(index: int, routes: Sequence[Route], answered: Mapping[tuple[int, int], Record]) -> Record:
    """The record of a request, each prompt's answer from the adapter it was sent to."""
    # The answers of one adapter to the prompts of a field come in the order of the prompts.
    answers = {
        (adapter, field): iter(getattr(answered[adapter, index], field))
        for adapter in {route.chosen for route in routes}
        for field in _FIELDS
    }
    stitched = {
        field: tuple(next(answers[route.chosen, field]) for route in routes if route.field == field)
        for field in _FIELDS
    }
    edit = next(route.chosen for route in routes if route.field == "prompt")
    return answered[edit, index].model_copy(update={"index": index, **stitched})
