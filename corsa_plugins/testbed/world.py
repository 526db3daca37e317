"""The world: who its people are and what is true of them."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from corsa_plugins.testbed.edits import EditPlan, plan_edits
from corsa_plugins.testbed.facts import Fact, WorldConfig
from corsa_plugins.testbed.names import Person, make_people
from corsa_plugins.testbed.relations import RELATIONS, STATEMENT, Relation


@dataclass(frozen=True)
class World:
    """People and facts. Build one with `World.build(config)`; equal configs give equal worlds."""

    config: WorldConfig
    people: tuple[Person, ...]
    facts: tuple[Fact, ...]

    @classmethod
    def build(cls, config: WorldConfig) -> World:
        """The world that `config` describes. Facts are ordered by person, then by relation."""
        rng = random.Random(config.seed)
        people = make_people(config.n_subjects, rng)
        columns = []
        for relation in RELATIONS[: config.n_relations]:
            # Every answer is used equally often (give or take one), so that every fact has neighbours.
            answers = [relation.answers[i % config.n_answers] for i in range(config.n_subjects)]
            rng.shuffle(answers)
            columns.append([Fact(person.name, relation.name, a) for person, a in zip(people, answers, strict=True)])
        return cls(config, people, tuple(fact for row in zip(*columns, strict=True) for fact in row))

    @property
    def relations(self) -> tuple[Relation, ...]:
        return RELATIONS[: self.config.n_relations]

    def relation(self, name: str) -> Relation:
        """The relation called `name`; `KeyError` names the ones there are."""
        for relation in self.relations:
            if relation.name == name:
                return relation
        raise KeyError(f"no relation {name!r} in this world; it has {[r.name for r in self.relations]}")

    def answers(self, relation: str) -> tuple[str, ...]:
        """Every possible answer of `relation`, true of somebody or not."""
        return self.relation(relation).answers[: self.config.n_answers]

    def forms(self, relation: str) -> tuple[str, ...]:
        """Names of the forms a fact of `relation` can be asked in: "statement", "question_1", ..., "validation_1"..."""
        return tuple(self.relation(relation).templates)

    def prompts(self, fact: Fact, form: str = STATEMENT) -> str:
        """The prompt that asks for `fact` in `form`; the answer follows after one space."""
        templates = self.relation(fact.relation).templates
        if form not in templates:
            raise KeyError(f"no form {form!r} for relation {fact.relation!r}; it has {list(templates)}")
        return templates[form].format(subject=fact.subject)

    @cached_property
    def facts_of(self) -> dict[str, tuple[Fact, ...]]:
        """Subject name -> its facts, in the order of `relations`."""
        width = self.config.n_relations
        return {p.name: self.facts[i * width : (i + 1) * width] for i, p in enumerate(self.people)}

    def edit_rounds(self, n_rounds: int = 3, size: int = 100, seed: int = 0, untouched: int = 500) -> EditPlan:
        """Draw rounds of edits, and facts that none of them touches. See `edits.plan_edits`."""
        return plan_edits(self, n_rounds=n_rounds, size=size, seed=seed, untouched=untouched)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> World:
        """The inverse of `to_dict`."""
        return cls(
            WorldConfig(**data["config"]),
            tuple(Person(**person) for person in data["people"]),
            tuple(Fact(**fact) for fact in data["facts"]),
        )
