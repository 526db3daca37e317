"""When an answer stands in what a model wrote, on cases worked out by hand, and when two are the same."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from corsa_plugins.data.answers import contains_answer, contains_text, is_answer, same_answer


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
    ("output", "answer", "contained"),
    [
        ("a party in Paris", "art", False),
        ("The chemical symbol of barium is Ba", "Ar", False),
        ("The symbol is Ar", "Ar", True),
        ("11F", "F", False),
        ("3.5", "3", False),
        ("13,000", "000", False),
        ("It is 3.", "3", True),
        ("3, 5", "3", True),
        ("the European Union", "Europe", False),
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
def test_an_answer_is_found_as_words_of_its_own(output, answer, contained):
    assert contains_answer(output, answer) is contained
    assert contains_text(output, answer) or not contained


@given(st.text(max_size=12), st.text(min_size=1, max_size=4).filter(str.strip))
def test_an_answer_that_is_found_is_in_the_text_and_one_between_spaces_is_found(output, answer):
    assert contains_text(output, answer) or not contains_answer(output, answer)
    assert contains_answer(f"{output} {answer} {output}", answer)


@pytest.mark.parametrize(
    ("output", "answer", "exact"),
    [
        (" Paris.", "Paris", True),
        ('"the  united STATES"\n', "United States", True),
        ("United States", "the United States", True),
        ("(Au)", "Au", True),
        ("AU", "Au", False),
        ("It is Paris", "Paris", False),
        ("Paris, of course", "Paris", False),
        ("", "Paris", False),
        ("A", "A", True),
    ],
)
def test_an_exact_answer_is_the_answer_and_nothing_else(output, answer, exact):
    assert is_answer(output, answer) is exact


@given(st.text(min_size=1, max_size=8).filter(lambda text: any(map(str.isalnum, text))))
@example("0.\x1f")  # whitespace to Python, though not to an eye
def test_an_answer_alone_is_exact_and_with_a_word_more_it_is_contained_alone(answer):
    assert is_answer(f' "{answer}".', answer)
    assert not is_answer(f"{answer} besides", answer)
    assert contains_answer(f"{answer} besides", answer)


@pytest.mark.parametrize("contains", [contains_answer, contains_text, is_answer])
def test_a_blank_answer_would_be_in_anything(contains):
    with pytest.raises(ValueError, match="blank"):
        contains("anything", " ")


@given(st.text(max_size=12), st.text(max_size=12))
def test_two_answers_are_the_same_if_each_contains_the_other(first, second):
    assert same_answer(first, f"  {first}\n")
    assert same_answer(first, second) is same_answer(second, first)
    if first.strip() and second.strip():
        assert same_answer(first, second) is (contains_text(first, second) and contains_text(second, first))
