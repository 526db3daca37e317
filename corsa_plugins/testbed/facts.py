"""What a world is made of, and what is asked of one that edits are drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from corsa_plugins.testbed.names import Person
from corsa_plugins.testbed.relations import RELATIONS, STATEMENT

__all__ = ["Fact", "Facts", "WorldConfig"]


@dataclass(frozen=True)
class WorldConfig:
    """What decides a world.

    Args:
        n_subjects: people; each has one answer for every relation.
        n_relations: the first so many of `relations.RELATIONS`.
        n_answers: possible answers of a relation, the first so many of its list.
        seed: of names and answers.
    """

    n_subjects: int = 400
    n_relations: int = 5
    n_answers: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.n_relations <= len(RELATIONS):
            raise ValueError(f"n_relations is {self.n_relations}; choose 1 to {len(RELATIONS)}")
        most = min(len(relation.answers) for relation in RELATIONS)
        if not 2 <= self.n_answers <= most:
            raise ValueError(f"n_answers is {self.n_answers}; choose 2 to {most}")


@dataclass(frozen=True)
class Fact:
    """`answer` is what is true of `subject` (a full name) in `relation` (a name)."""

    subject: str
    relation: str
    answer: str


class Facts(Protocol):
    """People, facts about them and the forms to ask in; :class:`~corsa_plugins.testbed.World` is one."""

    @property
    def config(self) -> WorldConfig:
        """How many of everything there are."""
        ...

    @property
    def people(self) -> Sequence[Person]:
        """In the order they were made."""
        ...

    @property
    def facts(self) -> Sequence[Fact]:
        """By person, then by relation."""
        ...

    @property
    def facts_of(self) -> Mapping[str, Sequence[Fact]]:
        """Subject name -> its facts, in the order of the relations."""
        ...

    def answers(self, relation: str) -> Sequence[str]:
        """Every possible answer of `relation`, true of somebody or not."""

    def forms(self, relation: str) -> Sequence[str]:
        """Names of the forms a fact of `relation` can be asked in."""

    def prompts(self, fact: Fact, form: str = STATEMENT) -> str:
        """The prompt that asks for `fact` in `form`."""
