"""What a model says by itself, and what three measures make of it.

Nothing of the target is given, the length knows nothing of it, and the model is left to stop by itself; how often it
did is told. The mirage that this is against is described by Yang et al., "The Mirage of Model Editing" (2025): with the
target's tokens given and the output cut to its length, edits look far better than they answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from corsa_plugins.bench.evaluation import Interval, bootstrap_mean
from corsa_plugins.bench.wild.questions import CONVERSATION, FORMS, Question
from corsa_plugins.data.answers import contains_answer, contains_text, is_answer
from corsa_plugins.model.asking import generate_answers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["MEASURES", "WildAnswer", "ask_wild", "wild_summary"]

MEASURES = {
    "exact": "the whole output is a right answer and nothing else",
    "words": "a right answer stands in the output as words of its own, and no wrong one",
    "text": "a right answer is found in the output by a search for the text, in a word too",
    "stopped": "the model ended its output by itself",
    "judged": "the judge calls it right",
}
"""What is counted, the strictest measure first."""


@dataclass(frozen=True)
class WildAnswer:
    """What was said to one question.

    Attributes:
        form, index, prompt, right, wrong, denied: Of the :class:`~corsa_plugins.bench.wild.questions.Question`.
        output: As it came.
        stopped: Whether the model ended it.
        exact, words, text: As :data:`MEASURES` says; of a denied question ``exact`` is ``None``.
        judged: What a judge says, where there is one.
    """

    form: str
    index: int
    prompt: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    denied: bool
    output: str
    stopped: bool
    exact: bool | None
    words: bool
    text: bool
    judged: bool | None = None

    @classmethod
    def of(cls, question: Question, output: str, stopped: bool) -> WildAnswer:
        """Measured. What has no word in it answers nothing, a denied question neither."""
        silent = _silent(output)
        said = {
            "words": any(contains_answer(output, right) for right in question.right),
            "text": any(contains_text(output, right) for right in question.right),
        }
        if question.denied:
            said = {name: not (value or silent) for name, value in said.items()}
        said["words"] = said["words"] and not any(contains_answer(output, wrong) for wrong in question.wrong)
        exact = None if question.denied else any(is_answer(output, right) for right in question.right)
        asked: dict[str, Any] = {
            name: getattr(question, name) for name in ("form", "index", "prompt", "right", "wrong", "denied")
        }
        return cls(**asked, output=output, stopped=stopped, exact=exact, words=said["words"], text=said["text"])

    @property
    def silent(self) -> bool:
        """Whether there is no word in the output."""
        return _silent(self.output)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> WildAnswer:
        """What :meth:`as_dict` gave.

        Raises:
            KeyError, TypeError: It is something else.
        """
        known = {field.name: data[field.name] for field in fields(cls)}
        return cls(**{**known, "right": tuple(known["right"]), "wrong": tuple(known["wrong"])})

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def ask_wild(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 64,
    chat_template: bool = False,
) -> list[WildAnswer]:
    """Ask every question, greedily, and measure the outputs.

    Args:
        model: A causal language model, or a ``PeftModel`` with its adapter active.
        tokenizer: Its tokenizer.
        questions: Of :func:`~corsa_plugins.bench.wild.questions.wild_questions`.
        max_new_tokens: Where an output that the model does not end is cut; the same for every question.
        batch_size: Sequences per forward pass.
        chat_template: Ask through the tokenizer's chat template, a conversation as turns.

    Raises:
        SettingError, TokenizationError: As for :func:`corsa_plugins.model.asking.generate_answers`.
    """
    answers: dict[int, WildAnswer] = {}
    for after in (False, True):
        chosen = [place for place, question in enumerate(questions) if question.conversation is after]
        if not chosen:
            continue
        generations = generate_answers(
            model,
            tokenizer,
            [questions[place].prompt for place in chosen],
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            chat_template=chat_template,
            conversation=CONVERSATION if after else (),
        )
        for place, generation in zip(chosen, generations, strict=True):
            answers[place] = WildAnswer.of(questions[place], generation.text, generation.finished)
    return [answers[place] for place in range(len(questions))]


def wild_summary(answers: Sequence[WildAnswer]) -> dict[str, dict[str, Interval]]:
    """By form and measure: the mean over requests with its 95 % bootstrap interval.

    A request's value is the mean over its questions of that form; where the form counts as a whole
    (:attr:`~corsa_plugins.bench.wild.questions.Form.whole`), 1 if all are right and else 0. Where it counts only for
    edits that are said (:attr:`~corsa_plugins.bench.wild.questions.Form.if_said`), the mean is over the requests that
    the measure calls right at the plain prompt; there is none where there are no such requests.
    """
    asked = {form.name: _by_request(answers, form.name) for form in FORMS}
    summary: dict[str, dict[str, Interval]] = {}
    for form in FORMS:
        measured = {}
        for measure in MEASURES:
            of_answers = measure != "stopped"  # which is of all outputs, right or wrong
            values = []
            for index, rows in asked[form.name].items():
                plain = asked[FORMS[0].name].get(index, [])
                if form.if_said and of_answers and not any(getattr(answer, measure) for answer in plain):
                    continue
                row = [value for answer in rows if (value := getattr(answer, measure)) is not None]
                if row:
                    values.append(float(all(row)) if form.whole and of_answers else sum(row) / len(row))
            if values:
                measured[measure] = bootstrap_mean(values)
        if measured:
            summary[form.name] = measured
    return summary


def _silent(output: str) -> bool:
    return not any(map(str.isalnum, output))


def _by_request(answers: Sequence[WildAnswer], form: str) -> dict[int, list[WildAnswer]]:
    asked: dict[int, list[WildAnswer]] = {}
    for answer in answers:
        if answer.form == form:
            asked.setdefault(answer.index, []).append(answer)
    return asked
