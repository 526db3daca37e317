"""What the people of a country are called."""

from __future__ import annotations

from corsa_plugins.atlas.facts import Fact, Relation
from corsa_plugins.atlas.sources.geography import COUNTRY_NAMES
from corsa_plugins.atlas.sources.source import Source

__all__ = ["PEOPLES"]

DEMONYM = Relation(
    "demonym",
    ("A person who comes from {} is called", "Somebody born and raised in {} is"),
    (
        "What is a person from {} called? Answer with one word only.",
        "Which adjective describes something that comes from {}? Answer with one word only.",
        "What nationality has a citizen of {}? Answer with one word only.",
    ),
)
_SMALLEST = 300_000


def _facts() -> list[Fact]:
    from countryinfo import CountryInfo

    facts: dict[str, Fact] = {}
    countries = [country for country in CountryInfo.all().values() if country.get("demonym")]
    for country in sorted(countries, key=lambda country: -int(country.get("population") or 0)):
        if int(country.get("population") or 0) < _SMALLEST:
            continue
        code = str((country.get("ISO") or {}).get("alpha2", ""))
        subject = COUNTRY_NAMES.get(code, (str(country["name"]),))[0]
        names = [f"{article}{country['demonym']}" for article in ("", "an ", "a ")]
        facts.setdefault(subject, DEMONYM.fact(subject, names[0], names[1:]))
    return list(facts.values())


PEOPLES = Source("countryinfo", "MIT", (DEMONYM,), _facts)
"""Of the package ``countryinfo``."""
