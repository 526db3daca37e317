"""Names that are no settings."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corsa_plugins.errors import SettingError
from tests.support.settings import Whole


@given(st.sampled_from([field.name for field in fields(Whole)]), st.integers(0, 20), st.sampled_from("qxz"))
def test_a_mistyped_name_is_recognised(name: str, at: int, letter: str) -> None:
    at = at % (len(name) + 1)
    typed = name[:at] + letter + name[at:]
    with pytest.raises(SettingError, match=rf"{typed} is no setting: did you mean {name}\?"):
        Whole.from_dict({"layers": [1], typed: 1})


def test_a_strange_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(SettingError, match=r"zzz is no setting: the settings are count, extra, .*switch$"):
        Whole.from_dict({"layers": [1], "zzz": 1})
    with pytest.raises(SettingError, match="3 is no setting"):
        Whole.from_dict({"layers": [1], 3: 1})  # type: ignore[dict-item]
    with pytest.raises(SettingError, match=r"layer is no setting: .*layers is missing: it must be a list"):
        Whole.from_dict({"layer": [1]})
