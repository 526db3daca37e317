"""What a world is made of, and what is asked of one that edits are drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

from pydantic import Field

from corsa_plugins.settings import Count, Settings
from corsa_plugins.testbed.names import Person
from corsa_plugins.testbed.relations import RELATIONS, STATEMENT

__all__ = ["Fact", "Facts", "WorldConfig"]


_MOST_ANSWERS = min(len(relation.answers) for relation in RELATIONS)


@dataclass(frozen=True)
class WorldConfig(Settings):
    """What decides a world.

    Args:
        n_subjects: people; each has one answer for every relation.
        n_relations: the first so many of `relations.RELATIONS`.
        n_answers: possible answers of a relation, the first so many of its list.
        seed: of names and answers.
    """

    n_subjects: Count = 400
    n_relations: Annotated[int, Field(ge=1, le=len(RELATIONS))] = 5
    n_answers: Annotated[int, Field(ge=2, le=_MOST_ANSWERS)] = 32
    seed: int = 0


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
