"""A program as it was before a function that it calls was updated."""

from __future__ import annotations

import pytest

from corsa_plugins.data.formats.code_before import new_parameters, program_before

NEW = "def hypot(*coordinates, scale=1, power=None):\n    return old_hypot(*coordinates) * scale\n"


def test_new_parameters_are_those_the_old_signature_lacks_or_the_old_function_is_not_given():
    assert new_parameters(NEW, "math.hypot(*coordinates)") == {"scale", "power"}
    assert new_parameters(NEW) == {"scale", "power"}
    assert new_parameters("def f(a, b=1, *, c=2):\n    return old_f(a, b=b + 1)") == {"c"}
    assert new_parameters("def f(a, b): return a + b") == set()  # the old one is not called: that cannot be told
    assert new_parameters("def f(") == set()


@pytest.mark.parametrize(
    ("program", "before"),
    [
        ("math.hypot(*p, scale=3)", "math.hypot(*p)"),
        ("math.hypot(scale=3)", "math.hypot()"),
        ("math.hypot(scale=3, x=1)", "math.hypot(x=1)"),
        ("hypot(\n    1,\n    scale=3,  # why\n    x=2,\n)", "hypot(\n    1,  # why\n    x=2,\n)"),
        ("x = 'ü', hypot('ä', scale='ö', power=2), 'ß'", "x = 'ü', hypot('ä'), 'ß'"),
        ("hypot(hypot(1, scale=2), scale=3)", "hypot(hypot(1))"),
        ("hypot(scale=hypot(1, scale=2))", "hypot()"),
        ("hypot(1)", None),
        ("other(1, scale=3)", None),
        ("hypot(1, scale=3", None),
    ],
)
def test_calls_lose_the_new_arguments(program, before):
    assert program_before(program, "hypot", new={"scale", "power"}) == before


def test_a_renamed_function_has_its_old_name_back():
    program = "frame.filter_by(1).filter_by(2)\nfilter_by_not(3)"
    before = program_before(program, "filter_by", old_name="select", new=set())
    assert before == "frame.select(1).select(2)\nfilter_by_not(3)"


def test_hostile_text_is_no_program():
    for text in ("(" * 50_000, "x" * 200_000, "a\0b", "-" * 90_000 + "1"):
        assert program_before(text, "f", new={"x"}) is None
        assert new_parameters(text) == set()
