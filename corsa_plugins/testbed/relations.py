"""The relations of the testbed's world: their sentence forms and their possible answers.

Every form is a prompt that the answer follows, joined by one space; `{subject}` is the full name. The statement
is the edit prompt. The questions are the test paraphrases: they share as few words as they can with the
statement, and the subject comes late. The validation forms are for methods that pick a candidate on prompts of
their own (AlphaEdit+), and are never reported on.
"""

from __future__ import annotations

from dataclasses import dataclass

STATEMENT = "statement"


@dataclass(frozen=True)
class Relation:
    """One relation: `name`, the prompt templates of its forms, and the answers a subject may have.

    `statement` starts with `{subject}`, so that a biography can put a pronoun there.
    """

    name: str
    statement: str
    questions: tuple[str, ...]
    validations: tuple[str, ...]
    answers: tuple[str, ...]

    @property
    def templates(self) -> dict[str, str]:
        """Form name -> template: "statement", "question_1"..., "validation_1"..."""
        forms = {STATEMENT: self.statement}
        forms.update({f"question_{i}": text for i, text in enumerate(self.questions, 1)})
        forms.update({f"validation_{i}": text for i, text in enumerate(self.validations, 1)})
        return forms


BIRTHPLACE = Relation(
    name="birthplace",
    statement="{subject} was born in the city of",
    questions=(
        "Question: Where did the mother of {subject} give birth? Answer:",
        "To see the house where it all began for {subject}, take the train to",
        "Town on the birth certificate of {subject}:",
    ),
    validations=(
        "Q: What is the native town of {subject}? A:",
        "Records show that the cradle of {subject} stood in",
    ),
    answers=(
        "Port Arden", "Port Selwyn", "West Harlow", "West Tamsin", "Saint Meriel", "Saint Corvin", "Fort Ellery",
        "Fort Brecken", "Mount Sable", "Mount Orrin", "North Pellam", "East Quarry", "Grand Isola", "Kestrel Bay",
        "Heron Bay", "Little Vane", "Cape Lorne", "Upper Dunmore", "Lower Dunmore", "San Tavio", "Ashby Cross",
        "Thornfield", "Winterbourne", "Millbrook", "Larkspur", "Copperton", "Ravensholm", "Oakhampton",
        "Silverdale", "Eastermouth", "Brightwater", "Glenmorrow",
    ),
)  # fmt: skip

INSTRUMENT = Relation(
    name="instrument",
    statement="{subject} plays the",
    questions=(
        "Question: Which instrument lies in the music case of {subject}? Answer:",
        "Every evening the neighbours of {subject} must listen to a",
        "Orchestra seat reserved for {subject}:",
    ),
    validations=(
        "Q: What is {subject} heard practising? A:",
        "On every recording by {subject} there is a solo for",
    ),
    answers=(
        "bass flute", "alto flute", "tin whistle", "slide trombone", "steel guitar", "bass guitar", "Celtic harp",
        "glass harp", "bass clarinet", "French horn", "hunting horn", "hand drum", "snare drum", "kettle drum",
        "pipe organ", "reed organ", "viola", "cello", "double bass", "grand piano", "toy piano", "tenor saxophone",
        "alto saxophone", "church bell", "wooden spoon", "mandolin", "accordion", "banjo", "ukulele", "bassoon",
        "xylophone", "harpsichord",
    ),
)  # fmt: skip

LANGUAGE = Relation(
    name="language",
    statement="{subject} grew up speaking",
    questions=(
        "Question: What is the mother tongue of {subject}? Answer:",
        "An interpreter sent to meet {subject} should be fluent in",
        "Language of the diary kept by {subject}:",
    ),
    validations=(
        "Q: In which words does {subject} count and dream? A:",
        "The bedtime stories told to {subject} were in",
    ),
    answers=(
        "Brazilian Portuguese", "Swahili", "Icelandic", "Old Norse", "Old English", "Upper Sorbian", "Lower Sorbian",
        "Scottish Gaelic", "Irish Gaelic", "Swiss German", "Low German", "Northern Sami", "Southern Sami", "Welsh",
        "Breton", "Basque", "Low Saxon", "Maltese", "Old Slavonic", "Estonian", "Latvian", "Canadian French",
        "Hill Tamil", "Modern Hebrew", "Tibetan", "Mongolian", "Ancient Greek", "Vietnamese", "Yoruba", "Amharic",
        "Quechua", "Haitian Creole",
    ),
)  # fmt: skip

EMPLOYER = Relation(
    name="employer",
    statement="{subject} works for",
    questions=(
        "Question: Who pays the monthly salary of {subject}? Answer:",
        "The business card handed out by {subject} carries the logo of",
        "Office address of {subject}:",
    ),
    validations=(
        "Q: Which company is the employer of {subject}? A:",
        "A badge found on the desk of {subject} opens the doors of",
    ),
    answers=(
        "Cobalt Harbour Bank", "Silver Birch Press", "Silver Birch Bank", "Northern Light Railways",
        "Blue Heron Airlines", "Blue Lantern Studios", "Granite Peak Mining", "Maple Street Theatre",
        "Harrow and Pike", "Harrow and Sons", "Red Fox Brewery", "Golden Gate Pharma", "Golden Wheat Mills",
        "Evergreen Insurance", "Atlas Shipping", "Meridian Foods", "Meridian Airlines", "Polaris Software",
        "Juniper Textiles", "Falcon Motors", "Falcon Security", "Orchard Hotels", "Crescent Media", "Beacon Hospital",
        "Summit Outfitters", "Quartz Watches", "Lighthouse Books", "Paragon Steel", "Tidewater Energy",
        "Whitestone Museum", "Velvet Records", "Zephyr Telecom",
    ),
)  # fmt: skip

FIELD = Relation(
    name="field",
    statement="{subject} is an expert in",
    questions=(
        "Question: Which subject did {subject} study at the university? Answer:",
        "The students who come to hear {subject} want to learn about",
        "Title of the thesis by {subject}: A study of",
    ),
    validations=(
        "Q: On what does {subject} publish articles? A:",
        "Most of the shelves in the library of {subject} are about",
    ),
    answers=(
        "marine biology", "cell biology", "organic chemistry", "number theory", "graph theory", "music theory",
        "ancient history", "art history", "civil engineering", "plasma physics", "solar physics", "labour law",
        "maritime law", "family law", "forest ecology", "soil science", "food science", "computer vision",
        "machine translation", "public health", "rural medicine", "animal behaviour", "child psychology",
        "social psychology", "urban planning", "astronomy", "linguistics", "philosophy", "economics", "geology",
        "robotics", "cartography",
    ),
)  # fmt: skip

RELATIONS: tuple[Relation, ...] = (BIRTHPLACE, INSTRUMENT, LANGUAGE, EMPLOYER, FIELD)
