"""Several adapters in one call: measured with every choice, or asked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corsa_plugins.bench.evaluation import evaluate
from corsa_plugins.bench.evaluation.prompts import answer_length
from corsa_plugins.bench.routing.evaluation import evaluate_routed
from corsa_plugins.bench.routing.report import RoutingReport
from corsa_plugins.bench.routing.router import Router
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.model.asking import cut_answer, generate_answers
from corsa_plugins.model.borrowing import active_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["AdapterPart", "RoutedAnswer", "ask_adapters", "measure_adapters"]


@dataclass(frozen=True)
class AdapterPart:
    """One adapter and the part of the knowledge it is for.

    Attributes:
        name: What to call it.
        adapter: Its name in the model.
        requests: That it was trained on.
    """

    name: str
    adapter: str
    requests: Sequence[EditRequest]


@dataclass(frozen=True)
class RoutedAnswer:
    """An answer of the adapter that a question was sent to.

    Attributes:
        question: As it was asked.
        chosen: The index of the adapter.
        text: What it answered, on one line.
    """

    question: str
    chosen: int
    text: str


def measure_adapters(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    parts: Sequence[AdapterPart],
    router: Router,
    *,
    single: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    **options: Any,
) -> RoutingReport:
    """Measure adapters with the true choice and with a router's, and one adapter of all requests beside them.

    Args:
        model: A ``PeftModel`` with all the adapters (:func:`~corsa_plugins.bench.routing.adapters.load_adapters`).
        tokenizer: Its tokenizer.
        parts: The adapters, in the router's order.
        router: Chooses among them.
        single: The name in the model of an adapter trained on all the requests: the upper bound.
        checkpoint: A folder for what is answered so far; a stopped measurement goes on from it. It is left there.
        options: As for :func:`~corsa_plugins.bench.evaluation.evaluate`, but for ``label`` and ``untouched``.

    Raises:
        SettingError: As for :func:`~corsa_plugins.bench.routing.evaluation.evaluate_routed`.
    """
    folder = Path(checkpoint) if checkpoint is not None else None
    groups = [part.requests for part in parts]
    requests = [request for group in groups for request in group]
    if options.get("max_new_tokens") is None:
        options["max_new_tokens"] = answer_length(tokenizer, requests)

    adapters = [part.adapter for part in parts]
    true = evaluate_routed(
        model, tokenizer, groups, adapters, label="true choice", checkpoint=folder and folder / "true", **options
    )
    routed = evaluate_routed(
        model, tokenizer, groups, adapters, router, label="routed", checkpoint=folder and folder / "routed", **options
    )
    alone = None
    if single is not None:
        with active_adapter(model, single):
            alone = evaluate(
                model,
                tokenizer,
                requests,
                label="one adapter",
                checkpoint=folder and folder / "single.jsonl",
                **options,
            )
    return RoutingReport(
        [part.name for part in parts], [len(group) for group in groups], routed, true.evaluation, alone
    )


def ask_adapters(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    adapters: Sequence[str],
    router: Router,
    questions: Sequence[str],
    *,
    max_new_tokens: int = 32,
    batch_size: int = 64,
    chat_template: bool = False,
) -> list[RoutedAnswer]:
    """Send each question to the adapter that the router chooses, and have it answered there.

    Args:
        model: A ``PeftModel`` with all the adapters.
        tokenizer: Its tokenizer.
        adapters: Their names in the model, in the router's order.
        router: Chooses among them.
        questions: What to ask.
        max_new_tokens: Length of the answers in tokens.
        batch_size: Sequences per forward pass.
        chat_template: Ask through the chat template. Without it an answer ends with its first sentence.
    """
    chosen = router.route(questions)
    texts: dict[int, str] = {}
    for index in sorted(set(chosen)):
        sent = [number for number, adapter in enumerate(chosen) if adapter == index]
        with active_adapter(model, adapters[index]):
            answers = generate_answers(
                model,
                tokenizer,
                [questions[number] for number in sent],
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                chat_template=chat_template,
            )
        for number, answer in zip(sent, answers, strict=True):
            texts[number] = " ".join(answer.text.split()) if chat_template else cut_answer(answer.text, answer.finished)
    return [RoutedAnswer(question, chosen[number], texts[number]) for number, question in enumerate(questions)]
