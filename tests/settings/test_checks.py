"""What is wrong is named, all of it; nothing is bent to fit unless that is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corsa_plugins.errors import SettingError
from corsa_plugins.settings import Count, InvalidSettingsError, check_fields
from tests.support.settings import WRONG, Part, Whole, finite


def test_values_are_of_the_type_that_is_declared() -> None:
    whole = Whole([1, 2], share=1, part={"rate": 3}, extra=Part(2))  # type: ignore[arg-type]
    assert (whole.layers, whole.part, whole.extra) == ((1, 2), Part(3.0), Part(2.0))
    assert [type(value) for value in (whole.layers, whole.share, whole.part.rate)] == [tuple, float, float]
    assert replace(whole, name="a").part is whole.part
    given = {"layers": [1], "part": {"rate": 3}}
    Whole.from_dict(given)
    assert given == {"layers": [1], "part": {"rate": 3}}


@given(st.sampled_from(list(WRONG)).flatmap(lambda name: st.tuples(st.just(name), WRONG[name])))
def test_a_value_that_cannot_be_is_named(wrong: tuple[str, Any]) -> None:
    name, value = wrong
    right = Whole((1,))
    for make in (
        lambda: Whole.from_dict({"layers": [1], name: value}),
        lambda: Whole(**{"layers": (1,), name: value}),
        lambda: replace(right, **{name: value}),
    ):
        with pytest.raises(InvalidSettingsError, match=f"^{name} is .*: it must be ") as caught:
            make()
        assert [problem.name for problem in caught.value.problems] == [name]


@given(st.dictionaries(st.sampled_from(list(WRONG)), st.none(), min_size=1), st.data())
def test_everything_that_is_wrong_is_named_at_once(names: dict[str, None], data: st.DataObject) -> None:
    values = {name: data.draw(WRONG[name], name) for name in names}
    with pytest.raises(InvalidSettingsError) as caught:
        Whole(**{"layers": (1,), **values})
    assert {problem.name for problem in caught.value.problems} == set(names)


@dataclass
class Loose:
    number: float = 0.5
    whole: Count = 1
    switch: bool = False
    layers: list[int] = field(default_factory=list)
    text: int | str = "a"


@given(finite, st.integers(1, 2**53))
def test_text_and_whole_floats_are_numbers_where_that_is_asked_for(number: float, whole: int) -> None:
    values = {"number": repr(number), "whole": float(whole), "layers": ["3"], "text": "7"}
    checked = check_fields(Loose, values, lenient=True)
    assert checked == {"number": number, "whole": whole, "layers": [3], "text": "7"}
    with pytest.raises(SettingError, match=r"number is '.*whole is .*layers is \['3'\]"):
        check_fields(Loose, values)


@pytest.mark.parametrize(
    "value", [{"number": True}, {"whole": True}, {"layers": [True]}, {"whole": 1.5}, {"whole": "a"}]
)
def test_a_switch_is_no_number_even_so(value: dict[str, Any]) -> None:
    (name,) = value
    with pytest.raises(SettingError, match=f"^{name} is"):
        check_fields(Loose, value, lenient=True)
    assert check_fields(Loose, {"switch": True, "unknown": 1}, lenient=True) == {"switch": True}
