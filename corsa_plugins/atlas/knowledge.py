"""Which facts a model truly knows: those that it tells in more than one form."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from corsa_plugins.atlas.answers import Answers, Question
from corsa_plugins.atlas.facts import Fact
from corsa_plugins.data.answers import contains_answer
from corsa_plugins.errors import CorsaError

__all__ = [
    "CHAT",
    "CHAT_STATEMENT",
    "FORMS",
    "QUESTION",
    "STATEMENT",
    "IgnoranceError",
    "Knowledge",
    "Known",
    "find_known",
]

STATEMENT, QUESTION, CHAT, CHAT_STATEMENT = "statement", "question", "question in chat", "statement in chat"
FORMS = (STATEMENT, CHAT, QUESTION, CHAT_STATEMENT)
"""Forms that a fact is asked in, in this order; a model without a chat template is asked in two."""

_LEAST_SLICE = 25
_STATEMENT_TOKENS, _QUESTION_TOKENS = 6, 14
_FEWEST_ANSWERS = 3


class IgnoranceError(CorsaError, ValueError):
    """The model knows too little of what it was asked."""


@dataclass(frozen=True)
class Known:
    """A fact that a model knows.

    Attributes:
        fact: Its ``answer`` is spelled as the model continues the statement; other right answers are its aliases.
        forms: Those of :data:`FORMS` in which the model gave a right answer.
    """

    fact: Fact
    forms: tuple[str, ...]


@dataclass(frozen=True)
class Knowledge:
    """What a model knows.

    Attributes:
        known: The facts, relation by relation; relations of which it knows little are left out.
        counts: For every relation that was asked, those left out too: how many facts were asked, under ``"asked"``,
            and how many of them were told in each form. After the statement only those that were right are asked on;
            after both it and the question in chat likewise.
        left_out: Names of the relations that are left out.
    """

    known: tuple[Known, ...]
    counts: Mapping[str, Mapping[str, int]]
    left_out: tuple[str, ...]


def find_known(answers: Answers, facts: Iterable[Fact], *, chat: bool, wanted: int = 400, least: int = 10) -> Knowledge:
    """Ask a model for facts until enough are known, those that more people know first.

    A fact is known if its answer is what the model writes at once behind the statement, and stands as words of its own
    in what it answers to the first question, in chat where there is a chat template.

    Args:
        answers: Of the model.
        facts: In the order in which they are to be asked, within each relation.
        chat: Whether the model has a chat template.
        wanted: Stop when so many are known; facts are asked in slices of every relation, so there may be more.
        least: A relation of which fewer are known is left out, and one with fewer than three answers among them.

    Raises:
        IgnoranceError: No relation is left.
    """
    by_relation: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        by_relation[fact.relation].append(fact)
    known: dict[str, list[Known]] = {relation: [] for relation in by_relation}
    counts: dict[str, dict[str, int]] = {relation: defaultdict(int) for relation in by_relation}
    step = max(_LEAST_SLICE, wanted // max(len(by_relation), 1))
    for start in range(0, max(map(len, by_relation.values()), default=0), step):
        asked = [fact for each in by_relation.values() for fact in each[start : start + step]]
        for each in _ask(answers, asked, chat, counts):
            known[each.fact.relation].append(each)
        if sum(len(each) for each in known.values() if _enough(each, least)) >= wanted:
            break
    kept = [each for each in known.values() if _enough(each, least)]
    left_out = tuple(relation for relation, each in known.items() if not _enough(each, least))
    if not kept:
        told = ", ".join(f"{relation} {len(each)} of {counts[relation]['asked']}" for relation, each in known.items())
        raise IgnoranceError(
            f"the model knows too little to edit: {told or 'no facts'}, and {least} facts of a relation with "
            f"{_FEWEST_ANSWERS} different answers are the least; give facts that it knows (--facts), or another model"
        )
    return Knowledge(
        tuple(one for each in kept for one in each), {name: dict(c) for name, c in counts.items()}, left_out
    )


def _enough(known: Sequence[Known], least: int) -> bool:
    return len(known) >= least and len({each.fact.answer for each in known}) >= _FEWEST_ANSWERS


def _ask(answers: Answers, facts: Sequence[Fact], chat: bool, counts: Mapping[str, dict[str, int]]) -> Iterator[Known]:
    """Those of ``facts`` that are known, with all their forms; each form is asked only where it can still matter."""
    for fact in facts:
        counts[fact.relation]["asked"] += 1
    statements = [Question(fact.written(fact.statements[0]), False) for fact in facts]
    told: dict[Fact, list[str]] = {}
    for fact, text in zip(facts, answers.ask(statements, _STATEMENT_TOKENS), strict=True):
        name = next((name for name in fact.answers if _begins_with(text, name)), None)
        if name is not None:
            told[_spelled(fact, name)] = [STATEMENT]
    for form in (CHAT, QUESTION, CHAT_STATEMENT) if chat else (QUESTION,):
        candidates = list(told)
        for fact, right in zip(candidates, _right(answers, candidates, form), strict=True):
            if right:
                told[fact].append(form)
            elif form == (CHAT if chat else QUESTION):
                _count(fact, told.pop(fact), counts)
    for fact, forms in told.items():
        _count(fact, forms, counts)
        yield Known(fact, tuple(forms))


def _count(fact: Fact, forms: Sequence[str], counts: Mapping[str, dict[str, int]]) -> None:
    for form in forms:
        counts[fact.relation][form] += 1


def _right(answers: Answers, facts: Sequence[Fact], form: str) -> list[bool]:
    asked = [
        Question(
            fact.written(fact.statements[0] if form == CHAT_STATEMENT else fact.questions[0]),
            form in (CHAT, CHAT_STATEMENT),
        )
        for fact in facts
    ]
    texts = answers.ask(asked, _QUESTION_TOKENS)
    return [any(contains_answer(text, name) for name in fact.answers) for fact, text in zip(facts, texts, strict=True)]


def _begins_with(text: str, name: str) -> bool:
    """Whether a text begins with a name, as words of its own."""
    return contains_answer(" ".join(text.split())[: len(name) + 1], name) if text.strip() else False


def _spelled(fact: Fact, name: str) -> Fact:
    return replace(fact, answer=name, aliases=tuple(other for other in fact.answers if other != name))
