"""The protocol ``wild``: what edits are worth when nobody helps the model to the answer.

Updates as in any other protocol, and beside what the papers count: free answers before the first update and after the
last (:mod:`corsa_plugins.bench.wild`), of all requests that still hold; the same of single edits, each on a model of
its own, kept apart; and the same again of what became of the edited model afterwards.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corsa_plugins.bench.evaluation import Interval, bootstrap_mean
from corsa_plugins.bench.protocols.plan import UpdatePlan, single_update
from corsa_plugins.bench.protocols.result import ProtocolResult
from corsa_plugins.bench.protocols.run import Measure, run_protocol
from corsa_plugins.bench.wild import Question, WildAnswer, ask_wild, wild_questions, wild_summary
from corsa_plugins.bench.wild.questions import CONVERSATION
from corsa_plugins.bench.wild.survive import Trial
from corsa_plugins.bench.wild.table import AFTER, ALONE, BEFORE, WildFigures, plain_summary
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError
from corsa_plugins.files import atomic_write_text
from corsa_plugins.methods.spec import Method

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["WILD", "Measures", "Wild", "WildRun", "read_run", "run_alone", "standing_requests", "write_wild"]

WILD = "wild.json"
"""Name of the file, in the folder of a method."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wild:
    """What is asked in the wild, beside the protocol's own questions.

    Attributes:
        max_new_tokens: Where an output that the model does not end is cut. It knows nothing of any answer.
        alone: How many requests, from the first on, are also edited alone, each on a fresh model.
        survive: What the edited model goes through afterwards
            (:func:`corsa_plugins.bench.wild.survive.trials`).
    """

    max_new_tokens: int = 64
    alone: int = 0
    survive: tuple[Trial, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 1), ("alone", 0)):
            if getattr(self, name) < least:
                raise SettingError(f"{name} is {getattr(self, name)}: it must be at least {least}")

    def measures(self, requests: Sequence[EditRequest], tokenizer: PreTrainedTokenizerBase, **asking: Any) -> Measures:
        """What :func:`~corsa_plugins.bench.protocols.run.run_protocol` asks for it.

        Args:
            requests: Those that are asked about.
            tokenizer: The model's.
            asking: ``batch_size`` and ``chat_template``.
        """
        questions = wild_questions(requests)
        key = _key(questions, self.max_new_tokens)

        def ask(model: Any) -> dict[str, Any]:
            answers = ask_wild(model, tokenizer, questions, max_new_tokens=self.max_new_tokens, **asking)
            return {
                "summary": plain_summary(wild_summary(answers)),
                "answers": [answer.as_dict() for answer in answers],
            }

        names = {trial.name: f"wild after {trial.key} {key}" for trial in self.survive}
        after = {names[trial.name]: _through(trial, ask) for trial in self.survive}
        return Measures(f"wild {key}", ask, after, names)


@dataclass(frozen=True)
class Measures:
    """The measures of a run: what is asked at both ends, and what of each trial, with their names."""

    name: str
    ask: Measure
    afterwards: Mapping[str, Measure]
    trials: Mapping[str, str]


def _through(trial: Trial, ask: Measure) -> Callable[[Any], Any]:
    return lambda model: ask(trial.change(model))


@dataclass(frozen=True)
class WildRun:
    """What became of edits in the wild.

    Attributes:
        method: Its name.
        lenient: With the target's own tokens given: the share of edit prompts on which every token of the new answer is
            the first choice; by moment.
        before: Answers before the first update.
        after: After the last one, of all requests that still hold.
        alone: Of single edits, each right after it on a model that has no other.
        survived: By what the edited model went through.
        apart: Of the answers after, those on which a lenient measure says right and a stricter one wrong.
    """

    method: str
    lenient: Mapping[str, Interval]
    before: tuple[WildAnswer, ...]
    after: tuple[WildAnswer, ...]
    alone: tuple[WildAnswer, ...] = ()
    survived: Mapping[str, tuple[WildAnswer, ...]] = field(default_factory=dict)
    apart: tuple[Mapping[str, Any], ...] = ()

    def moments(self) -> dict[str, tuple[WildAnswer, ...]]:
        """All answers by what they are of, in the order of tables."""
        single = {ALONE: self.alone} if self.alone else {}
        after = {f"after {name}": answers for name, answers in self.survived.items()}
        return {BEFORE: self.before, AFTER: self.after, **single, **after}

    def figures(self) -> WildFigures:
        """What tables and pages show."""
        summaries = {moment: wild_summary(answers) for moment, answers in self.moments().items()}
        return WildFigures(self.method, summaries, self.lenient, self.apart)

    def judged(self, judge: Callable[[Sequence[WildAnswer]], Sequence[bool]]) -> WildRun:
        """With a judge's verdicts on every answer."""

        def with_verdicts(answers: Sequence[WildAnswer]) -> tuple[WildAnswer, ...]:
            return tuple(replace(a, judged=verdict) for a, verdict in zip(answers, judge(answers), strict=True))

        return replace(
            self,
            before=with_verdicts(self.before),
            after=with_verdicts(self.after),
            alone=with_verdicts(self.alone),
            survived={name: with_verdicts(answers) for name, answers in self.survived.items()},
        )


def standing_requests(plan: UpdatePlan) -> list[EditRequest]:
    """The requests of all updates that no later update gives another target."""
    return [
        request
        for number, update in enumerate(plan.sets, start=1)
        for request in compress(update.requests, plan.standing(number))
    ]


def read_run(result: ProtocolResult, measures: Measures, alone: Sequence[WildRun] = ()) -> WildRun:
    """A run out of what the protocol measured."""
    last = len(result.plan.sets)
    answers = {key: _answers(result.measured[key]) for key in [(0, measures.name), (last, measures.name)]}
    survived = {trial: _answers(result.measured[last, name]) for trial, name in measures.trials.items()}
    summary = result.summary()
    lenient = {AFTER: summary.at_the_end.get("efficacy_top1")}
    before = [v for update in result.plan.sets for v in _top1(result, update.name)]
    lenient[BEFORE] = bootstrap_mean(before) if before else None
    single = [run.lenient[AFTER].mean for run in alone if AFTER in run.lenient]
    lenient[ALONE] = bootstrap_mean(single) if single else None
    after = answers[last, measures.name]
    top1 = [bool(v) for number, update in enumerate(result.plan.sets, start=1) for v in compress(
        result.at(last, update.name).values("efficacy_top1"), result.plan.standing(number))]  # fmt: skip
    return WildRun(
        method=result.method,
        lenient={name: value for name, value in lenient.items() if value is not None},
        before=answers[0, measures.name],
        after=after,
        alone=tuple(replace(a, index=place) for place, run in enumerate(alone) for a in run.after),
        survived=survived,
        apart=tuple(_apart(after, top1)),
    )


def _top1(result: ProtocolResult, name: str) -> list[float]:
    evaluation = result.evaluations.get((0, name))
    return [value for value in evaluation.values("efficacy_top1") if value is not None] if evaluation else []


def _answers(measured: Mapping[str, Any]) -> tuple[WildAnswer, ...]:
    return tuple(map(WildAnswer.from_dict, measured["answers"]))


def _apart(answers: Sequence[WildAnswer], top1: Sequence[bool]) -> Iterator[dict[str, Any]]:
    """Where measures part, the widest gaps first."""
    given, searched, contained = [], [], []
    for answer in answers:
        row = {"form": answer.form, "prompt": answer.prompt, "right": answer.right[0], "output": answer.output}
        if answer.form == "prompt" and top1[answer.index] and not answer.words:
            given.append({**row, "lenient": "its tokens given", "strict": "as words"})
        elif answer.text and not answer.words:
            searched.append({**row, "lenient": "as text", "strict": "as words"})
        elif answer.words and answer.exact is False:
            contained.append({**row, "lenient": "as words", "strict": "exactly"})
    yield from (*given, *searched, *contained)


def run_alone(
    method: Method,
    wild: Wild,
    requests: Sequence[EditRequest],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    output: str | os.PathLike[str],
    asking: Mapping[str, Any],
    **settings: Any,
) -> list[WildRun]:  # what a run takes, once for each request
    """The first requests, each edited on a model that has no other edit; every one is a run of its own below ``alone``.

    Args:
        method, model, tokenizer, settings: As for :func:`corsa_plugins.bench.protocols.run.run_protocol`.
        wild: What is asked, and of how many.
        requests: Of the whole run.
        output: Its folder.
        asking: ``batch_size`` and ``chat_template``.
    """
    runs = []
    plain_wild = replace(wild, survive=())
    for index, request in enumerate(requests[: wild.alone]):
        logger.info("alone: %d of %d", index + 1, min(wild.alone, len(requests)))
        plan = single_update([request])
        measures = plain_wild.measures([request], tokenizer, **asking)
        folder = Path(output) / "alone" / f"{index + 1:03d}"
        result = run_protocol(
            method, plan, model, tokenizer, folder, measures={measures.name: measures.ask}, **settings
        )
        runs.append(read_run(result, measures))
    return runs


def write_wild(run: WildRun, path: str | os.PathLike[str], further: Mapping[str, Any] | None = None) -> Path:
    """A run's summaries, and where measures part, as JSON; whole or not at all. All answers are in ``measures/``.

    Args:
        run: What to write.
        path: The file.
        further: Entries to add, plain data: the agreement of a judge.
    """
    told = {**run.figures().as_dict(), **(further or {})}
    return atomic_write_text(path, json.dumps({"wild": told}, indent=2, ensure_ascii=False) + "\n")


def _key(questions: Sequence[Question], length: int) -> str:
    told = json.dumps([length, CONVERSATION, [vars(question) for question in questions]], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:8]
