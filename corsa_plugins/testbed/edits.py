"""Rounds of edits on the world: what changes, who stays, and what is asked of both."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from corsa_plugins.data.requests import EditRequest, Probe
from corsa_plugins.testbed.facts import Fact, Facts

MAX_NEIGHBOURS = 10


@dataclass(frozen=True)
class EditPlan:
    """Rounds of edits to make one after the other, and facts to watch meanwhile.

    Attributes:
        rounds: disjoint rounds of edit requests; no subject occurs twice in a round, nor, where the world has
            enough people, in two rounds.
        untouched: facts of people whom no round edits, as requests whose `target_new` is the true answer and whose
            `target_old` is None: evaluate them like edits, and never train on them.
        same_subject: the other facts of the edited people, likewise: what an edit of one fact does to the rest of
            what is known of its subject.
    """

    rounds: list[list[EditRequest]]
    untouched: list[EditRequest]
    same_subject: list[EditRequest]


def plan_edits(world: Facts, n_rounds: int = 3, size: int = 100, seed: int = 0, untouched: int = 500) -> EditPlan:
    """Draw `n_rounds` rounds of `size` edits, the relations taking turns, and `untouched` facts to watch.

    People are drawn for the untouched facts first; edits go to the others, each round to `size` of them. Only
    when there are fewer people than edits do later rounds return to a person, and then for another relation.
    A new answer is drawn from its relation's other answers. Neighbours (`neighborhood`) are statements of the same
    relation about other people with the same old answer, edited in no round; of some of these people a round edits
    another fact. What is edited of nobody is in ``untouched``.

    Raises:
        ValueError: if the world has too few people or facts for this plan; the message says how many it needs.
    """
    rng = random.Random(f"edits {seed}")
    width = world.config.n_relations
    people = [person.name for person in world.people]
    rng.shuffle(people)
    n_watched = -(-untouched // width)
    watched, candidates = people[:n_watched], people[n_watched:]
    if len(candidates) < size or len(candidates) * width < n_rounds * size:
        need = n_watched + max(size, -(-n_rounds * size // width))
        raise ValueError(
            f"{n_rounds} rounds of {size} edits and {untouched} untouched facts need {need} subjects; "
            f"this world has {len(people)}. Ask for fewer, or build a larger world (WorldConfig.n_subjects)"
        )
    edited_rounds = _draw_rounds(world, candidates, n_rounds, size)
    edited = {fact for facts in edited_rounds for fact in facts}
    rounds = []
    for r, facts in enumerate(edited_rounds):
        rounds.append([_edit(world, f, edited, rng, case_id=f"round{r + 1}-{i}") for i, f in enumerate(facts)])
    touched = {fact.subject for fact in edited}
    same_subject = [f for f in world.facts if f.subject in touched and f not in edited]
    untouched_facts = [f for name in watched for f in world.facts_of[name]][:untouched]
    return EditPlan(
        rounds=rounds,
        untouched=[_watch(world, f, case_id=f"untouched-{i}") for i, f in enumerate(untouched_facts)],
        same_subject=[_watch(world, f, case_id=f"same_subject-{i}") for i, f in enumerate(same_subject)],
    )


def _draw_rounds(world: Facts, candidates: Sequence[str], n_rounds: int, size: int) -> list[list[Fact]]:
    """Go round the candidates in order; each visit to a person takes the next of that person's relations."""
    width = world.config.n_relations
    rounds = []
    for r in range(n_rounds):
        facts = []
        for i in range(r * size, (r + 1) * size):
            visit, person = divmod(i, len(candidates))
            facts.append(world.facts_of[candidates[person]][(person + visit) % width])
        rounds.append(facts)
    return rounds


def _edit(world: Facts, fact: Fact, edited: set[Fact], rng: random.Random, case_id: str) -> EditRequest:
    target = rng.choice([answer for answer in world.answers(fact.relation) if answer != fact.answer])
    neighbours = [
        other
        for other in world.facts
        if other.relation == fact.relation and other.answer == fact.answer and other not in edited
    ]
    chosen = rng.sample(neighbours, min(MAX_NEIGHBOURS, len(neighbours)))
    return EditRequest(
        prompt=world.prompts(fact),
        target_new=target,
        subject=fact.subject,
        target_old=fact.answer,
        paraphrases=_prompts(world, fact, "question"),
        neighborhood=tuple(Probe(prompt=world.prompts(n), answer=n.answer) for n in chosen),
        validation_prompts=_prompts(world, fact, "validation"),
        case_id=case_id,
    )


def _watch(world: Facts, fact: Fact, case_id: str) -> EditRequest:
    return EditRequest(
        prompt=world.prompts(fact),
        target_new=fact.answer,
        subject=fact.subject,
        paraphrases=_prompts(world, fact, "question"),
        validation_prompts=_prompts(world, fact, "validation"),
        case_id=case_id,
    )


def _prompts(world: Facts, fact: Fact, kind: str) -> tuple[str, ...]:
    """The prompts of `fact` in the forms whose names start with `kind`."""
    return tuple(world.prompts(fact, form) for form in world.forms(fact.relation) if form.startswith(kind))
