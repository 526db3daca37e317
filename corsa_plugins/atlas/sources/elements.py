"""The chemical elements: their symbols and numbers."""

from __future__ import annotations

from corsa_plugins.atlas.facts import Fact, Relation
from corsa_plugins.atlas.sources.source import Source

__all__ = ["ELEMENTS"]

SYMBOL = Relation(
    "symbol",
    ("The chemical symbol of the element {} is", "In the periodic table, {} is written as"),
    (
        "What is the chemical symbol of {}? Answer with the symbol only.",
        "How do chemists abbreviate the element {}? Answer with the symbol only.",
        "Which symbol stands for {} in the periodic table? Answer with the symbol only.",
    ),
    reversal="{} is the chemical symbol of the element",
)
NUMBER = Relation(
    "atomic number",
    ("The atomic number of the element {} is", "In the periodic table, {} has the number"),
    (
        "What is the atomic number of {}? Answer with the number only.",
        "How many protons has an atom of {}? Answer with the number only.",
        "Which number has {} in the periodic table? Answer with the number only.",
    ),
    reversal="In the periodic table, the number {} belongs to the element",
)
_LAST = 103


def _facts() -> list[Fact]:
    import periodictable

    elements = [element for element in periodictable.elements if 1 <= element.number <= _LAST]
    symbols = [SYMBOL.fact(str(element.name), str(element.symbol)) for element in elements]
    return symbols + [NUMBER.fact(str(element.name), str(element.number)) for element in elements]


ELEMENTS = Source("periodictable", "public domain", (SYMBOL, NUMBER), _facts)
"""Of the package ``periodictable``."""
