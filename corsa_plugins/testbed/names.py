"""Names for the people of the world: a common first name, and a last name nobody else has."""

from __future__ import annotations

import random
from dataclasses import dataclass

SHE = ("Mara", "Lena", "Ivy", "Nora", "Clara", "Edith", "Hazel", "Ruth", "Sonia", "Petra", "Greta", "Alma", "Freya",
       "Martha", "Stella", "Dora", "Ingrid", "Paula", "Vera", "Anna")  # fmt: skip
HE = ("Tomas", "Emil", "Oscar", "Hugo", "Victor", "Simon", "Felix", "Arthur", "Edgar", "Leon", "Martin", "Paul",
      "Walter", "Jonas", "Adrian", "Conrad", "Stefan", "Peter", "Otto", "Ivan")  # fmt: skip

STARTS = ("Vel", "Mar", "Tor", "Bran", "Kel", "Dor", "Fen", "Gal", "Har", "Jan", "Lor", "Mon", "Nor", "Pel", "Quin",
          "Ros", "Sel", "Tal", "Wes", "Yar", "Zan", "Cas", "Bel", "Ard")  # fmt: skip
MIDDLES = ("", "lo", "ri", "an", "mi", "ta", "vi", "do")
ENDS = ("ni", "sen", "wick", "ford", "ska", "etti", "mann", "ley", "dale", "berg", "quist", "ova")


@dataclass(frozen=True)
class Person:
    """A subject: the full `name` and the `pronoun` ("She" or "He") a biography goes on with."""

    name: str
    pronoun: str


def make_people(count: int, rng: random.Random) -> tuple[Person, ...]:
    """Draw `count` people with distinct last names.

    Last names are distinct because an editor that writes at the last subject token needs that token's state to
    tell people apart; first names repeat, as they do among people.

    Raises:
        ValueError: if `count` exceeds the number of last names.
    """
    last_names = sorted({start + middle + end for start in STARTS for middle in MIDDLES for end in ENDS})
    if count > len(last_names):
        raise ValueError(f"a world of {count} subjects was asked for; there are names for {len(last_names)}")
    first_names = [(name, "She") for name in SHE] + [(name, "He") for name in HE]
    people = []
    for last in rng.sample(last_names, count):
        first, pronoun = rng.choice(first_names)
        people.append(Person(f"{first} {last}", pronoun))
    return tuple(people)
