"""When an answer stands in what a model wrote, on cases worked out by hand, and when two are the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corsa_plugins.data.answers import contains_alias, contains_answer, same_answer


@pytest.mark.parametrize(
    ("output", "answer", "contained"),
    [
        (" It is PARIS, of course", "Paris", True),
        ("New\nYork  City", "new york", True),
        ("Pari", "Paris", False),
        ("Straße", "STRASSE", True),
        ("", "Paris", False),
    ],
)
def test_an_answer_is_found_whatever_its_case_and_spacing(output, answer, contained):
    assert contains_answer(output, answer) is contained


@pytest.mark.parametrize(
    ("output", "alias", "contained"),
    [
        (" the USA.", "USA", True),
        ("It is\nROMA,  of course", "roma", True),
        ("a German", "man", False),
        ("Romania", "Roma", False),
        ("Romania, not Roma", "Roma", True),
        ("1960", "196", False),
        ("it is", "IT", False),
        ("Man is", "man", True),
        ("paid in C$", "C$", True),
        ("CC$", "C$", False),
        ("首都は京都です", "京都", True),
        ("serbské", "serbsk", False),
        ("", "Roma", False),
    ],
)
def test_an_alias_is_found_as_words_of_its_own(output, alias, contained):
    assert contains_alias(output, alias) is contained


@given(st.text(max_size=12), st.text(min_size=1, max_size=4).filter(str.strip))
def test_an_alias_that_is_found_is_in_the_output_and_one_between_spaces_is_found(output, alias):
    assert contains_answer(output, alias) or not contains_alias(output, alias)
    assert contains_alias(f"{output} {alias} {output}", alias)


@pytest.mark.parametrize("contains", [contains_answer, contains_alias])
def test_a_blank_answer_would_be_in_anything(contains):
    with pytest.raises(ValueError, match="blank"):
        contains("anything", " ")


@given(st.text(max_size=12), st.text(max_size=12))
def test_two_answers_are_the_same_if_each_contains_the_other(first, second):
    assert same_answer(first, f"  {first}\n")
    assert same_answer(first, second) is same_answer(second, first)
    if first.strip() and second.strip():
        assert same_answer(first, second) is (contains_answer(first, second) and contains_answer(second, first))
