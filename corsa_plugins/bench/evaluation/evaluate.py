"""Ask a model every prompt of a list of edit requests, and keep what it said.

:func:`evaluate` measures one model at one moment and gives the result a label ("before", "right after round 1", "after
all rounds"). An :class:`~corsa_plugins.bench.evaluation.evaluation.Evaluation` never mixes two moments: comparing them
is comparing two evaluations (:func:`corsa_plugins.bench.evaluation.changes.compare`).
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from corsa_plugins.bench.evaluation.checkpoint import finished_records, input_key, open_checkpoint
from corsa_plugins.bench.evaluation.evaluation import Evaluation
from corsa_plugins.bench.evaluation.judge import Judge
from corsa_plugins.bench.evaluation.prompts import Prompts, answer_length, as_probe, check_lengths
from corsa_plugins.bench.evaluation.records import ProbeAnswer, Record
from corsa_plugins.data.requests import EditRequest, Probe
from corsa_plugins.errors import SettingError
from corsa_plugins.journal import Journal
from corsa_plugins.model.asking import generate_answers, score_targets
from corsa_plugins.model.identity import model_key
from corsa_plugins.model.processes import ALONE, Processes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["evaluate"]

logger = logging.getLogger(__name__)


def evaluate(  # a keyword for each thing that a user says of how to ask; `_Asking` groups them from here on
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
    processes: Processes = ALONE,
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
        processes: That share the questions, each with the model; all get the result. The first has the checkpoint.

    Returns:
        One record per request, from which every metric follows, and digests of the model, its tokenizer and what it
        was asked.

    Raises:
        SettingError: There is nothing to evaluate, or a setting is out of range.
        CheckpointError: The checkpoint belongs to another evaluation: of another model, other requests or settings.
        TokenizationError: A prompt or a target gives no tokens, or there is no chat template.
        RequestError: Prompts are longer than the model reads.
    """
    probes = [as_probe(fact) for fact in untouched or ()]
    items: list[EditRequest | Probe] = [*requests, *probes]
    if not items:
        raise SettingError("nothing to evaluate: give requests, untouched facts, or both")
    _check(batch_size=batch_size, max_new_tokens=max_new_tokens, fluency_tokens=fluency_tokens)
    check_lengths(model, tokenizer, Prompts(items), chat_template)
    length = answer_length(tokenizer, items) if max_new_tokens is None else max_new_tokens
    asking = _Asking(batch_size, length, chat_template, fluency_tokens)
    asker = _Asker(model, tokenizer, asking, processes)
    key: dict[str, Any] = processes.of_first(asker.key(items) if processes.is_first else None)
    answered = _answers(asker, items, key, checkpoint=checkpoint, progress=progress)
    n = len(requests)
    inputs = {name: value for name, value in key.items() if name in ("model", "tokenizer", "requests")}
    evaluation = Evaluation(label, tuple(answered[:n]), tuple(answered[n:]), asking.settings, inputs)  # type: ignore[arg-type]
    broken = sum(not math.isfinite(record.edit.log_prob_new) for record in evaluation.records)
    if broken:
        logger.warning("log-probabilities of %d of %d requests are not finite numbers", broken, n)
    return evaluation


def _check(**numbers: int | None) -> None:
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise SettingError(f"{name} is {value}: it must be at least 1")


@dataclass(frozen=True)
class _Asking:
    """How everything is asked."""

    batch_size: int
    max_new_tokens: int
    chat_template: bool
    fluency_tokens: int | None

    @property
    def settings(self) -> dict[str, Any]:
        """What the answers depend on besides the model."""
        fluency = {} if self.fluency_tokens is None else {"fluency_tokens": self.fluency_tokens}
        return {"max_new_tokens": self.max_new_tokens, "chat_template": self.chat_template, **fluency}


@dataclass(frozen=True)
class _Asker:
    """Asks the model about some items at a time."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    asking: _Asking
    processes: Processes = ALONE

    def __call__(self, items: Sequence[EditRequest | Probe], first: int) -> list[Record | ProbeAnswer]:
        """What the model answers to ``items``, the first of which has the index ``first``."""
        prompts = Prompts(items)
        pairs = list(prompts.pairs)
        outputs = self._generate(list(prompts.prompts), self.asking.max_new_tokens)
        texts: dict[str, str] = {}
        if self.asking.fluency_tokens is not None:
            edits = dict.fromkeys(item.prompt for item in items if isinstance(item, EditRequest))
            texts = self._generate(list(edits), self.asking.fluency_tokens)
        scores = score_targets(self.model, self.tokenizer, pairs, **self._options)
        by_pair = dict(zip(pairs, scores, strict=True))
        judge = Judge(outputs, by_pair, texts, whole_output=self.asking.chat_template)
        return [
            judge.record(index, item) if isinstance(item, EditRequest) else judge.probe(item)
            for index, item in enumerate(items, start=first)
        ]

    def key(self, items: Sequence[EditRequest | Probe]) -> dict[str, Any]:
        """What the answers to ``items`` depend on."""
        asking = {**self.asking.settings, "batch_size": self.asking.batch_size}
        return {**asking, **input_key(items), **model_key(self.model, self.tokenizer)}

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "batch_size": self.asking.batch_size,
            "chat_template": self.asking.chat_template,
            "progress": False,
        }

    def _generate(self, prompts: list[str], length: int) -> dict[str, str]:
        generations = generate_answers(self.model, self.tokenizer, prompts, max_new_tokens=length, **self._options)
        return {prompt: generation.text for prompt, generation in zip(prompts, generations, strict=True)}


def _answers(
    ask: _Asker,
    items: Sequence[EditRequest | Probe],
    key: Mapping[str, Any],
    *,
    checkpoint: str | os.PathLike[str] | None,
    progress: bool,
) -> list[Record | ProbeAnswer]:
    """What the model answers, chunk by chunk, a chunk a process, without what the checkpoint already has."""
    processes = ask.processes
    sizes = [len(Prompts([item])) for item in items]
    answered: list[Record | ProbeAnswer] = []
    with contextlib.ExitStack() as stack:
        journal: Journal | None = None
        if checkpoint is not None and processes.is_first:
            journal = stack.enter_context(open_checkpoint(checkpoint, key))
        finished = processes.of_first(None if journal is None else finished_records(journal)) or []
        answered = [_from_json(item, row) for item, row in zip(items, finished, strict=False)]
        hidden = None if progress and processes.is_first else True
        bar = stack.enter_context(
            # disable=None: no bar where nobody watches, as in a log file
            tqdm(total=sum(sizes), desc="evaluate", disable=hidden, leave=False, unit="question")
        )
        bar.update(sum(sizes[: len(answered)]))
        chunks = list(_chunks(sizes, len(answered), 4 * ask.asking.batch_size))
        for dealt in (chunks[at : at + processes.count] for at in range(0, len(chunks), processes.count)):
            own = slice(*dealt[processes.index]) if processes.index < len(dealt) else None
            rows = [] if own is None else ask(items[own], own.start)
            for (start, end), of_process in zip(dealt, processes.of_each(rows), strict=False):
                if journal is not None:
                    journal.append([row.model_dump(mode="json") for row in of_process])
                answered += of_process
                bar.update(sum(sizes[start:end]))
    return answered


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
