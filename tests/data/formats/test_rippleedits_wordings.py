"""RippleEdits' sentences taken apart, or refused where that would be a guess."""

from __future__ import annotations

import pytest

from corsa_plugins.data.formats import RecordError
from corsa_plugins.data.formats.rippleedits_wordings import take_apart


@pytest.mark.parametrize(
    ("sentence", "relation", "original", "expected"),
    [
        ("The gender of A. B. is male.", "SEX_OR_GENDER", None, ("The gender of A. B. is", "male", "A. B.")),
        ("X follows Y.", "FOLLOWS", None, ("X follows", "Y", "X")),
        ("Is Leo Arons still alive? no.", "IS_ALIVE", None, ("Is Leo Arons still alive?", "no", "Leo Arons")),
        (
            "The name of the author of Dune is Martin King Jr..",
            "AUTHOR",
            None,
            ("The name of the author of Dune is", "Martin King Jr.", "Dune"),
        ),
        (  # the subject holds the wording; both sentences have it
            "The name of the director of This is Us is Ann.",
            "DIRECTOR",
            "The name of the director of This is Us is Bob.",
            ("The name of the director of This is Us is", "Ann", "This is Us"),
        ),
        (  # the answer holds it; the outdated one does not
            "The name of the anthem of Oz is What is Love.",
            "ANTHEM",
            "The name of the anthem of Oz is .",
            ("The name of the anthem of Oz is", "What is Love", "Oz"),
        ),
    ],
)
def test_taking_a_sentence_apart(sentence, relation, original, expected):
    assert take_apart(sentence, relation, original) == expected


@pytest.mark.parametrize(
    ("sentence", "relation", "reason"),
    [
        ("The name of the director of This is Us is Ann.", "DIRECTOR", "more than once"),
        ("The mother of X is Y.", "MOTHER", "not worded as"),
        ("The name of the mother of X was Y.", "MOTHER", "nowhere"),
        ("A likes B.", "LIKES", "relation 'LIKES' is not known"),
    ],
)
def test_what_cannot_be_taken_apart_is_not_guessed(sentence, relation, reason):
    with pytest.raises(RecordError, match=reason):
        take_apart(sentence, relation)
