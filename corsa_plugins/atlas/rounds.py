"""Rounds of edits of facts that a model knows: which becomes what, who stays, and what is asked of both."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from corsa_plugins.atlas.facts import PLACE, Fact
from corsa_plugins.data.requests import EditRequest, Probe
from corsa_plugins.errors import SettingError

__all__ = ["Draw", "Rounds", "plan_rounds"]

_MOST_NEIGHBOURS = 10


@dataclass(frozen=True)
class Draw:
    """How much is drawn of what is known.

    Attributes:
        rounds: How many rounds of edits.
        size: Edits in each.
        seed: Of everything that is drawn: which facts are edited, to what, and which are watched.
        untouched: Most facts that are watched.
        question: Whether prompts are the first questions, which are known in chat, and statements are among the other
            wordings: for those who edit and ask through the chat template. Off, it is the other way round.
    """

    rounds: int = 2
    size: int = 60
    seed: int = 0
    untouched: int = 200
    question: bool = False


@dataclass(frozen=True)
class Rounds:
    """Rounds of edits to make one after the other, and facts to watch meanwhile.

    Attributes:
        rounds: Disjoint rounds of edit requests; no subject occurs twice in them.
        untouched: Facts of subjects that no round edits, as requests whose ``target_new`` is the true answer and whose
            ``target_old`` is None: evaluate them like edits, and never train on them.
        same_subject: Other facts of the edited subjects, likewise.
    """

    rounds: list[list[EditRequest]]
    untouched: list[EditRequest]
    same_subject: list[EditRequest]


def plan_rounds(known: Sequence[Fact], draw: Draw) -> Rounds:
    """Draw rounds of edits, the relations taking turns, and facts to watch.

    At most half of a relation's facts are edited: its neighbours come from the other half. A new answer is another that
    the model knows of the same relation. Neighbours are statements of the same relation about subjects that no round
    edits, those with the same old answer first: what else is known of an edited subject is in ``same_subject``.

    Args:
        known: Facts that the model knows; their answers as it spells them.
        draw: How much.

    Raises:
        SettingError: There are too few facts; the message says how many edits there can be.
    """
    rng, rounds, count = random.Random(f"atlas {draw.seed}"), draw.rounds, draw.rounds * draw.size
    by_relation: dict[str, list[Fact]] = defaultdict(list)
    for fact in known:
        by_relation[fact.relation].append(fact)
    edited = _draw(by_relation, count, rng)
    if len(edited) < count:
        raise SettingError(
            f"{rounds} rounds of {draw.size} edits need {count} facts of different subjects, and at most half of a "
            f"relation's; of the {len(known)} that are known, {len(edited)} can be edited: ask for fewer or smaller "
            "rounds, or have more facts asked (--wanted)"
        )
    rng.shuffle(edited)
    changed = set(edited)
    touched = {fact.subject for fact in edited}
    wording = _Wording(draw.question)
    requests = [_edit(fact, wording, by_relation, touched, rng) for fact in edited]
    others = [fact for fact in known if fact.subject not in touched]
    same_subject = [fact for fact in known if fact.subject in touched and fact not in changed]
    watched = rng.sample(others, min(draw.untouched, len(others)))
    return Rounds(
        rounds=[
            [_named(request, f"round{number + 1}-{index}") for index, request in enumerate(requests[number::rounds])]
            for number in range(rounds)
        ],
        untouched=[_watch(fact, wording, f"untouched-{index}") for index, fact in enumerate(watched)],
        same_subject=[_watch(fact, wording, f"same_subject-{index}") for index, fact in enumerate(same_subject)],
    )


def _draw(by_relation: Mapping[str, Sequence[Fact]], count: int, rng: random.Random) -> list[Fact]:
    """Up to ``count`` facts of different subjects, the relations taking turns, at most half of each relation's."""
    waiting = {relation: rng.sample(facts, len(facts)) for relation, facts in by_relation.items()}
    left = {relation: len(facts) // 2 for relation, facts in by_relation.items()}
    chosen: list[Fact] = []
    subjects: set[str] = set()
    while len(chosen) < count and any(left.values()):
        for relation, facts in waiting.items():
            while facts and facts[-1].subject in subjects:
                facts.pop()
            if not facts:
                left[relation] = 0
            if left[relation] and len(chosen) < count:
                fact = facts.pop()
                chosen.append(fact)
                subjects.add(fact.subject)
                left[relation] -= 1
    return chosen


def _edit(
    fact: Fact,
    wording: _Wording,
    by_relation: Mapping[str, Sequence[Fact]],
    touched: Collection[str],
    rng: random.Random,
) -> EditRequest:
    relation = by_relation[fact.relation]
    right = {name.casefold() for name in fact.answers}
    target = rng.choice(sorted({other.answer for other in relation if other.answer.casefold() not in right}))
    staying = [other for other in relation if other.subject not in touched]
    alike = [other for other in staying if other.answer == fact.answer]
    neighbours = rng.sample(alike, min(_MOST_NEIGHBOURS, len(alike)))
    others = [other for other in staying if other.answer != fact.answer]
    neighbours += rng.sample(others, min(_MOST_NEIGHBOURS - len(neighbours), len(others)))
    return EditRequest(
        prompt=wording.prompt(fact),
        target_new=target,
        subject=fact.subject,
        target_old=fact.answer,
        paraphrases=wording.others(fact),
        neighborhood=tuple(_probe(neighbour, wording) for neighbour in neighbours),
        portability=_consequences(fact, target, by_relation),
        reversed=_reversal(fact, target),
        validation_prompts=wording.validation(fact),
    )


@dataclass(frozen=True)
class _Wording:
    """Which form of a fact is its prompt: the first statement, or the first question."""

    question: bool

    def prompt(self, fact: Fact) -> str:
        """The one that is edited, or asked of a fact that is watched."""
        return fact.written((fact.questions if self.question else fact.statements)[0])

    def validation(self, fact: Fact) -> tuple[str, ...]:
        """Those to choose settings with: the last of several questions."""
        return tuple(map(fact.written, fact.questions[-1:] if len(fact.questions) > 1 else ()))

    def others(self, fact: Fact) -> tuple[str, ...]:
        """Those to test with: all the rest."""
        taken = {self.prompt(fact), *self.validation(fact)}
        first, second = fact.questions, fact.statements
        forms = (*second, *first) if self.question else (*first, *second)
        return tuple(text for text in map(fact.written, forms) if text not in taken)


def _consequences(fact: Fact, target: str, by_relation: Mapping[str, Iterable[Fact]]) -> tuple[Probe, ...]:
    """What else changes for the subject with its answer, as far as the model knows it of both answers."""
    if fact.follows is None:
        return ()
    relation, form = fact.follows
    of = {other.subject: other for other in by_relation.get(relation, ())}
    old, new = of.get(fact.answer), of.get(target)
    if old is None or new is None or old.answer == new.answer:
        return ()
    return (Probe(prompt=fact.written(form), answer=new.answer, aliases=new.aliases),)


def _reversal(fact: Fact, target: str) -> tuple[Probe, ...]:
    """Who has the new answer: the subject. Whose it was is asked for in the same words, and is no longer right."""
    if fact.reversal is None:
        return ()
    return (Probe(prompt=fact.reversal.replace(PLACE, target), answer=fact.subject),)


def _probe(fact: Fact, wording: _Wording) -> Probe:
    return Probe(prompt=wording.prompt(fact), answer=fact.answer, aliases=fact.aliases)


def _watch(fact: Fact, wording: _Wording, case_id: str) -> EditRequest:
    return EditRequest(
        prompt=wording.prompt(fact),
        target_new=fact.answer,
        subject=fact.subject,
        paraphrases=wording.others(fact)[:1],
        case_id=case_id,
    )


def _named(request: EditRequest, case_id: str) -> EditRequest:
    return request.model_copy(update={"case_id": case_id})
