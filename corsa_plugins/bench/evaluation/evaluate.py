"""Ask a model every prompt of a list of edit requests, and keep what it said.

:func:`evaluate` measures one model at one moment and gives the result a label ("before", "right after round 1", "after
all rounds"). An :class:`Evaluation` never mixes two moments: comparing them is comparing two evaluations
(:func:`corsa_plugins.bench.evaluation.tables.compare`).
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from corsa_plugins.bench.evaluation.checkpoint import finished_records, input_key, open_checkpoint
from corsa_plugins.bench.evaluation.records import METRICS, Answer, Evaluation, Metric, ProbeAnswer, Record
from corsa_plugins.data.answers import contains_alias, contains_answer, same_answer
from corsa_plugins.data.requests import EditRequest, Probe
from corsa_plugins.errors import SettingError
from corsa_plugins.journal import Journal
from corsa_plugins.model.asking import TargetScore, cut_answer, generate_answers, score_targets
from corsa_plugins.model.identity import model_key

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["METRICS", "Answer", "Evaluation", "Metric", "ProbeAnswer", "Record", "evaluate", "longest_target"]

logger = logging.getLogger(__name__)


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    *,
    label: str = "model",
    untouched: Sequence[Probe | EditRequest] | None = None,
    batch_size: int = 64,
    max_new_tokens: int | None = None,
    fluency_tokens: int | None = None,
    chat_template: bool = False,
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Evaluation:
    """Measure a model on edit requests, and on facts that should have stayed as they were.

    Everything is asked greedily and in batches; neither the batch size nor the tokenizer's padding side changes a
    verdict. Behind a plain prompt a model that was never taught to stop goes on to other matters, so the answer judged
    is the first sentence of its output (:func:`~corsa_plugins.model.asking.cut_answer`); with a chat template, where
    the model ends its own turn, it is the whole output. The record keeps the output as it came.

    Args:
        model: A causal language model, or a ``PeftModel`` with the adapter to measure active. Its weights and the
            modes of its modules are left as they were.
        tokenizer: Its tokenizer.
        requests: What to ask about; may be empty if there are untouched facts.
        label: Which model and moment this is.
        untouched: Facts that no request is about, with their right answers; of an :class:`EditRequest` the prompt
            and ``target_new`` are taken, as a fact and its true answer.
        batch_size: Sequences per forward pass.
        max_new_tokens: Length of the outputs in tokens; by default that of the longest answer to be found, aliases of
            probes included, plus 16.
            Give it when comparing evaluations of different request files.
        fluency_tokens: Also have the model write this many tokens behind each edit prompt, and measure their fluency
            (:func:`~corsa_plugins.bench.evaluation.metrics.ngram_entropy`); 100 in the literature, and about 5 times
            the cost of all the rest. A model that ends its answer earlier is not made to go on.
        chat_template: Ask through the tokenizer's chat template.
        progress: Show a progress bar.
        checkpoint: A file to which finished requests are appended. If it holds some of this same evaluation, because
            that was interrupted, they are not asked again. It is left there: delete it when the result is saved.

    Returns:
        One record per request, from which every metric follows.

    Raises:
        SettingError: There is nothing to evaluate, or a setting is out of range.
        CheckpointError: The checkpoint belongs to another evaluation: of another model, other requests or settings.
        TokenizationError: A prompt or a target gives no tokens, or there is no chat template.
    """
    probes = [_as_probe(fact) for fact in untouched or ()]
    if not requests and not probes:
        raise SettingError("nothing to evaluate: give requests, untouched facts, or both")
    for name, value in (
        ("batch_size", batch_size),
        ("max_new_tokens", max_new_tokens),
        ("fluency_tokens", fluency_tokens),
    ):
        if value is not None and value < 1:
            raise SettingError(f"{name} is {value}: it must be at least 1")
    items: list[EditRequest | Probe] = [*requests, *probes]
    if max_new_tokens is None:
        max_new_tokens = longest_target(tokenizer, items) + 16
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "chat_template": chat_template}
    if fluency_tokens is not None:
        settings["fluency_tokens"] = fluency_tokens
    ask = _Asker(model, tokenizer, batch_size, settings)
    sizes = [len(_Questions([item])) for item in items]
    answered: list[Record | ProbeAnswer] = []
    with contextlib.ExitStack() as stack:
        saved: Journal | None = None
        if checkpoint is not None:
            key = {**settings, "batch_size": batch_size, **input_key(items), **model_key(model, tokenizer)}
            saved = stack.enter_context(open_checkpoint(checkpoint, key))
            answered = [_from_json(item, row) for item, row in zip(items, finished_records(saved), strict=False)]
        bar = stack.enter_context(
            # disable=None: no bar where nobody watches, as in a log file
            tqdm(total=sum(sizes), desc="evaluate", disable=None if progress else True, leave=False, unit="question")
        )
        bar.update(sum(sizes[: len(answered)]))
        for start, end in _chunks(sizes, len(answered), 4 * batch_size):
            rows = ask(items[start:end], start)
            if saved is not None:
                saved.append([row.model_dump(mode="json") for row in rows])
            answered += rows
            bar.update(sum(sizes[start:end]))
    broken = sum(isinstance(row, Record) and not math.isfinite(row.edit.log_prob_new) for row in answered)
    if broken:
        logger.warning("log-probabilities of %d of %d requests are not finite numbers", broken, len(requests))
    n = len(requests)
    return Evaluation(label, tuple(answered[:n]), tuple(answered[n:]), settings)  # type: ignore[arg-type]


def longest_target(tokenizer: PreTrainedTokenizerBase, items: Sequence[EditRequest | Probe]) -> int:
    """Tokens of the longest answer to be found: by default, answers are asked for with 16 more."""
    asked = _Questions(items)
    targets = {target for _, target in asked.pairs} | asked.aliases
    return max((len(tokenizer(target, add_special_tokens=False)["input_ids"]) for target in targets), default=0)


def _chunks(sizes: Sequence[int], start: int, least: int) -> Iterator[tuple[int, int]]:
    """Runs of items from ``start`` on, each of at least ``least`` questions except the last.

    Where a run ends depends on where it starts alone, so an evaluation that goes on from the end of one asks in the
    same batches as one that was never stopped.
    """
    questions = 0
    for index in range(start, len(sizes)):
        questions += sizes[index]
        if questions >= least or index == len(sizes) - 1:
            yield start, index + 1
            start, questions = index + 1, 0


def _from_json(item: EditRequest | Probe, row: Any) -> Record | ProbeAnswer:
    return (Record if isinstance(item, EditRequest) else ProbeAnswer).model_validate(row)


def _as_probe(fact: Probe | EditRequest) -> Probe:
    return Probe(prompt=fact.prompt, answer=fact.target_new) if isinstance(fact, EditRequest) else fact


class _Questions:
    """Prompts to generate from and (prompt, target) pairs to score, each once, in order."""

    def __init__(self, items: Sequence[EditRequest | Probe]) -> None:
        self.prompts: dict[str, None] = {}
        self.pairs: dict[tuple[str, str], None] = {}
        self.aliases: set[str] = set()  # looked for in outputs, never scored
        for item in items:
            if isinstance(item, Probe):
                self._probe(item)
                continue
            for prompt in (item.prompt, *item.paraphrases):
                self._add(prompt, [item.target_new, *([item.target_old] if item.target_old else [])])
            for probe in item.portability:
                self._probe(probe)
            for probe in item.neighborhood:
                self._probe(probe, item.target_new)

    def _probe(self, probe: Probe, target_new: str | None = None) -> None:
        self._add(probe.prompt, [answer for answer in (probe.answer, target_new) if answer and probe.answer])
        self.aliases.update(probe.aliases)

    def _add(self, prompt: str, targets: Iterable[str]) -> None:
        self.prompts[prompt] = None
        self.pairs.update({(prompt, target): None for target in targets})

    def __len__(self) -> int:
        return len(self.prompts) + len(self.pairs)


@dataclass(frozen=True)
class _Asker:
    """Asks the model about some items at a time."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int
    settings: dict[str, Any]

    def __call__(self, items: Sequence[EditRequest | Probe], first: int) -> list[Record | ProbeAnswer]:
        """What the model answers to ``items``, the first of which has the index ``first``."""
        asked = _Questions(items)
        prompts, pairs = list(asked.prompts), list(asked.pairs)
        options: dict[str, Any] = {
            "batch_size": self.batch_size,
            "chat_template": self.settings["chat_template"],
            "progress": False,
        }
        outputs = self._generate(prompts, self.settings["max_new_tokens"], options)
        texts: dict[str, str] = {}
        if "fluency_tokens" in self.settings:
            edits = [item.prompt for item in items if isinstance(item, EditRequest)]
            texts = self._generate(list(dict.fromkeys(edits)), self.settings["fluency_tokens"], options)
        scores = dict(zip(pairs, score_targets(self.model, self.tokenizer, pairs, **options), strict=True))
        judge = _Judge(outputs, scores, texts, whole_output=self.settings["chat_template"])
        return [
            judge.record(first + place, item) if isinstance(item, EditRequest) else judge.probe(item)
            for place, item in enumerate(items)
        ]

    def _generate(self, prompts: list[str], length: int, options: dict[str, Any]) -> dict[str, str]:
        generations = generate_answers(self.model, self.tokenizer, prompts, max_new_tokens=length, **options)
        return {prompt: generation.text for prompt, generation in zip(prompts, generations, strict=True)}


@dataclass(frozen=True)
class _Judge:
    outputs: dict[str, str]
    scores: dict[tuple[str, str], TargetScore]
    texts: dict[str, str]
    whole_output: bool

    def record(self, index: int, request: EditRequest) -> Record:
        return Record(
            index=index,
            case_id=request.case_id,
            target_new=request.target_new,
            target_old=request.target_old,
            edit=self.answer(request.prompt, request),
            paraphrases=tuple(self.answer(prompt, request) for prompt in request.paraphrases),
            neighborhood=tuple(self.probe(probe, request.target_new) for probe in request.neighborhood),
            portability=tuple(self.probe(probe) for probe in request.portability),
            continuation=self.texts.get(request.prompt),
        )

    def given(self, prompt: str) -> str:
        """The answer that is judged."""
        output = self.outputs[prompt]
        return output if self.whole_output else cut_answer(output)

    def says(self, prompt: str, target: str) -> bool:
        return contains_answer(self.given(prompt), target)

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

    def probe(self, probe: Probe, target_new: str | None = None) -> ProbeAnswer:
        if probe.answer is None:
            return ProbeAnswer(prompt=probe.prompt, answer=None, output=self.outputs[probe.prompt])
        score = self.scores[probe.prompt, probe.answer]
        says_itself, said_alias = self.says(probe.prompt, probe.answer), None
        if not says_itself:
            given = self.given(probe.prompt)
            said_alias = next((alias for alias in probe.aliases if contains_alias(given, alias)), None)
        # Where target_new is a right answer as well, that it is likely is no damage done.
        new_is_right = target_new is not None and any(
            same_answer(target_new, right) for right in (probe.answer, *probe.aliases)
        )
        return ProbeAnswer(
            prompt=probe.prompt,
            answer=probe.answer,
            output=self.outputs[probe.prompt],
            says_answer=says_itself or said_alias is not None,
            top1=score.top1,
            log_prob=score.log_prob,
            log_prob_new=(
                self.scores[probe.prompt, target_new].log_prob if target_new is not None and not new_is_right else None
            ),
            aliases=probe.aliases,
            said_alias=said_alias,
        )
