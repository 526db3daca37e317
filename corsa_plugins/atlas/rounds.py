"""Rounds of edits of facts that a model knows: which becomes what, who stays, and what is asked of both."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from corsa_plugins.atlas.facts import Fact
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
    """

    rounds: int = 2
    size: int = 60
    seed: int = 0
    untouched: int = 200


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
    the model knows of the same relation. Neighbours are statements of the same relation about other subjects, those
    with the same old answer first, edited in no round.

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
    requests = [_edit(fact, by_relation, changed, rng) for fact in edited]
    others = [fact for fact in known if fact.subject not in touched]
    same_subject = [fact for fact in known if fact.subject in touched and fact not in changed]
    watched = rng.sample(others, min(draw.untouched, len(others)))
    return Rounds(
        rounds=[
            [_named(request, f"round{number + 1}-{index}") for index, request in enumerate(requests[number::rounds])]
            for number in range(rounds)
        ],
        untouched=[_watch(fact, f"untouched-{index}") for index, fact in enumerate(watched)],
        same_subject=[_watch(fact, f"same_subject-{index}") for index, fact in enumerate(same_subject)],
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
    fact: Fact, by_relation: Mapping[str, Sequence[Fact]], changed: Collection[Fact], rng: random.Random
) -> EditRequest:
    relation = by_relation[fact.relation]
    right = {name.casefold() for name in fact.answers}
    target = rng.choice(sorted({other.answer for other in relation if other.answer.casefold() not in right}))
    staying = [other for other in relation if other not in changed and other.subject != fact.subject]
    alike = [other for other in staying if other.answer == fact.answer]
    neighbours = rng.sample(alike, min(_MOST_NEIGHBOURS, len(alike)))
    others = [other for other in staying if other.answer != fact.answer]
    neighbours += rng.sample(others, min(_MOST_NEIGHBOURS - len(neighbours), len(others)))
    return EditRequest(
        prompt=fact.written(fact.statements[0]),
        target_new=target,
        subject=fact.subject,
        target_old=fact.answer,
        paraphrases=_wordings(fact)[0],
        neighborhood=tuple(_probe(neighbour) for neighbour in neighbours),
        portability=_consequences(fact, target, by_relation),
        validation_prompts=_wordings(fact)[1],
    )


def _wordings(fact: Fact) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Other wordings of the statement: to test with, and to choose settings with."""
    spare = fact.questions[-1:] if len(fact.questions) > 1 else ()
    test = (*fact.questions[: len(fact.questions) - len(spare)], *fact.statements[1:])
    return tuple(map(fact.written, test)), tuple(map(fact.written, spare))


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


def _probe(fact: Fact) -> Probe:
    return Probe(prompt=fact.written(fact.statements[0]), answer=fact.answer, aliases=fact.aliases)


def _watch(fact: Fact, case_id: str) -> EditRequest:
    return EditRequest(
        prompt=fact.written(fact.statements[0]),
        target_new=fact.answer,
        subject=fact.subject,
        paraphrases=(fact.written(fact.questions[0]),),
        case_id=case_id,
    )


def _named(request: EditRequest, case_id: str) -> EditRequest:
    return request.model_copy(update={"case_id": case_id})
