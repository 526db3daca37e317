"""The task ``edits``: what an edit did, by the metrics of :mod:`corsa_plugins.bench.evaluation`.

A question of the task is a whole edit request, or an untouched fact. The harness has its model write behind each of
their prompts, and score each answer; records are made of that, and metrics of the records, as ``corsa evaluate`` does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import Task, TaskConfig
from lm_eval.filters import build_filter_ensemble

from corsa_plugins.bench.evaluation.judge import Judge
from corsa_plugins.bench.evaluation.metrics import Of, select_metrics
from corsa_plugins.bench.evaluation.prompts import ROOM, Prompts
from corsa_plugins.data.reading import read_probes, read_requests
from corsa_plugins.data.requests import EditRequest, Probe
from corsa_plugins.errors import SettingError
from corsa_plugins.model.tokenization import separate

__all__ = ["EditsTask"]

_KEYS = ("requests", "untouched")
_HOW = """--metadata '{"requests": "facts.jsonl"}'"""


class _Score(NamedTuple):
    """How the model rates an answer: log-probability in nats, and whether it is the greedy continuation."""

    log_prob: float
    top1: bool


class EditsTask(Task):
    """Edit requests, and facts that should have stayed as they were.

    Metrics have the names of ``corsa evaluate``, its definitions, and its mean over the requests that have something to
    measure. What differs is the harness's: the model's own generation settings are in force, and it is not known to a
    task how many tokens an answer has, so that by default the model may write as many as the longest answer has bytes,
    and 16. ``--gen_kwargs max_gen_toks=...`` sets that, and ``corsa evaluate`` has the same as ``max_new_tokens``.
    Behind a chat template that ends in whitespace the harness scores that whitespace with the answer: differences of
    log-probabilities are as they should be, log-probabilities and top-1 verdicts are not, and are left out.

    Args:
        config: As the harness reads it of the task file, with ``metadata`` of the command line: ``requests``, a file of
            edit requests, and ``untouched``, one of facts; either may be left out.

    Raises:
        SettingError: Neither is given.
        RequestError: A file cannot be used; the message names file, line and field.
    """

    VERSION = 1.0
    OUTPUT_TYPE = "generate_until"

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        # As the harness's own configurable task, not through Task.__init__: that one downloads and reads no settings.
        self._training_docs = self._fewshot_docs = self._instances = self.fewshot_rnd = None
        self._filters = [build_filter_ensemble("none", [("take_first", None)])]
        fields = {name: value for name, value in (config or {}).items() if name != "class"}
        self._items = _read(fields.get("metadata") or {})
        length = ROOM + max(len(answer.encode()) for answer in _answers(self._items))
        fields["generation_kwargs"] = {
            "until": [],  # the end of a text alone: where an answer ends is the judge's to say
            "do_sample": False,
            "max_gen_toks": length,
            **(fields.get("generation_kwargs") or {}),
        }
        self._config = TaskConfig(**{"task": "edits", "num_fewshot": 0, **fields})
        self._chat = False
        self._spaced = False
        self._docs = [{"index": index, **item.model_dump(mode="json")} for index, item in enumerate(self._items)]

    def has_training_docs(self) -> bool:
        """It has none."""
        return False

    def has_validation_docs(self) -> bool:
        """It has none."""
        return False

    def has_test_docs(self) -> bool:
        """The requests, then the facts."""
        return True

    def test_docs(self) -> list[dict[str, Any]]:
        """The requests, then the facts, with their index."""
        return self._docs

    def doc_to_text(self, doc: Mapping[str, Any]) -> str:
        """The edit prompt, or that of the fact."""
        return str(doc["prompt"])

    def doc_to_target(self, doc: Mapping[str, Any]) -> str:
        """The new answer, or the right one of the fact."""
        return str(doc.get("target_new") or doc.get("answer") or "")

    def build_all_requests(self, **settings: Any) -> None:
        """As the harness asks for it, without its cache, which knows a task by its name and not by its files."""
        self._chat = bool(settings.get("apply_chat_template"))
        super().build_all_requests(**{**settings, "cache_requests": False, "rewrite_requests_cache": False})

    def fewshot_context(self, doc: Any, num_fewshot: int, **settings: Any) -> Callable[[str], str]:
        """How any prompt is put: behind a system instruction, and through the chat template, where there are."""
        system = settings.get("system_instruction")
        render = settings.get("chat_template") if settings.get("apply_chat_template") else None
        if render is None:
            return lambda prompt: f"{system}\n\n{prompt}" if system else prompt
        before = [{"role": "system", "content": system}] if system else []
        self._spaced = str(render([*before, {"role": "user", "content": "x"}]))[-1:].isspace()
        return lambda prompt: str(render([*before, {"role": "user", "content": prompt}]))

    def construct_requests(self, doc: Any, ctx: Callable[[str], str], **kwargs: Any) -> list[Instance]:
        """All that is asked about one request or fact: texts to write, then answers to score, in the order of
        :class:`~corsa_plugins.bench.evaluation.prompts.Prompts`."""
        named = {name: value for name, value in kwargs.items() if name not in ("apply_chat_template", "chat_template")}
        asked = Prompts([self._items[doc["index"]]])
        settings = self.config.generation_kwargs
        arguments: list[tuple[str, tuple[Any, ...]]] = [
            ("generate_until", (self._put(prompt, ctx), copy.deepcopy(settings))) for prompt in asked.prompts
        ]
        for prompt, target in asked.pairs:
            behind = target if self._chat else separate(prompt, target)[1]
            arguments.append(("loglikelihood", (self._put(prompt, ctx), behind)))
        return [
            Instance(request_type=kind, doc=doc, arguments=values, idx=index, **named)
            for index, (kind, values) in enumerate(arguments)
        ]

    def _put(self, prompt: str, ctx: Callable[[str], str]) -> str:
        """As a model of ours is asked: spaces at the end of a plain prompt belong to the answer."""
        return ctx(prompt if self._chat else separate(prompt, "x")[0])

    def process_results(self, doc: Any, results: Sequence[Any]) -> dict[str, float]:
        """The metrics that have a value for one request or fact."""
        item = self._items[doc["index"]]
        asked = Prompts([item])
        outputs = dict(zip(asked.prompts, results[: len(asked.prompts)], strict=True))
        scores = {
            pair: _Score(float(log_prob), bool(top1))
            for pair, (log_prob, top1) in zip(asked.pairs, results[len(asked.prompts) :], strict=True)
        }
        judge = Judge(outputs, scores, {}, whole_output=self._chat)
        if isinstance(item, EditRequest):
            record: Any = judge.record(doc["index"], item)
            metrics = select_metrics(Of.REQUEST)
        else:
            record, metrics = judge.probe(item), select_metrics(Of.FACT)
        values = {metric.name: metric.value(record) for metric in metrics if not (self._spaced and _alone(metric.name))}
        return {name: float(value) for name, value in values.items() if value is not None}

    def aggregation(self) -> dict[str, Callable[[Sequence[float]], float]]:
        """The mean, of every metric."""
        return {metric.name: mean for metric in select_metrics(of=None)}

    def higher_is_better(self) -> dict[str, bool]:
        """Of the metrics that do not only describe."""
        return {metric.name: metric.better > 0 for metric in select_metrics(of=None) if metric.better}


def _alone(metric: str) -> bool:
    """Whether it is about the tokens of one answer alone."""
    return metric.startswith("log_prob") or metric.endswith("_top1")


def _read(metadata: Mapping[str, Any]) -> list[EditRequest | Probe]:
    files = {name: metadata.get(name) for name in _KEYS}
    for name, path in files.items():
        if path is not None and not isinstance(path, str):
            raise SettingError(f"task edits: {name} is {path!r}: give the path of a file, as in {_HOW}")
    if not any(files.values()):
        raise SettingError(f"task edits: no file of edit requests: add {_HOW}")
    items: list[EditRequest | Probe] = list(read_requests(files["requests"])) if files["requests"] else []
    items += read_probes(files["untouched"]) if files["untouched"] else []
    return items


def _answers(items: Sequence[EditRequest | Probe]) -> list[str]:
    prompts = Prompts(items)
    return [target for _, target in prompts.pairs] + sorted(prompts.aliases) or [""]
