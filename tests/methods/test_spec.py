"""What a spec says of its method follows from how the method is made."""

from __future__ import annotations

import json
from typing import Any

import pytest

from corsa_plugins.errors import SettingError
from corsa_plugins.methods.registry import method_specs
from corsa_plugins.methods.spec import MethodSpec
from tests.support.python import FRAMEWORKS, blocked


def spec(make: Any, **more: Any) -> MethodSpec:
    return MethodSpec(name="mine", title="Mine", summary="does it", source="a paper", make=make, **more)


@pytest.mark.parametrize(
    ("make", "statistics", "settings", "options"),
    [
        (lambda: None, False, False, ()),
        (lambda settings: None, False, True, ()),
        (lambda settings=None, rate=1, times=2: None, False, False, ("rate", "times")),
        (lambda statistics, settings, rate=1: None, True, True, ("rate",)),
    ],
)
def test_needs_and_options_are_the_parameters_of_what_makes_it(
    make: Any, statistics: bool, settings: bool, options: tuple[str, ...]
) -> None:
    mine = spec(make)
    assert (mine.needs_statistics, mine.needs_settings, mine.options) == (statistics, settings, options)
    assert mine.needs == tuple(n for n, needed in (("settings", settings), ("statistics", statistics)) if needed)


def test_what_it_is_made_with_is_checked_first() -> None:
    calls = []
    mine = spec(lambda settings, rate=1: calls.append((settings, rate)))
    with pytest.raises(SettingError, match=r"mine: missing a required argument: 'settings'; its options are: se"):
        mine(rate=2)
    with pytest.raises(SettingError, match=r"method mine: got an unexpected keyword argument 'raet'"):
        mine("x", raet=2)
    assert not calls
    mine("x", rate=2)
    assert calls == [("x", 2)]


def test_settings_are_found_where_they_are_said_to_be() -> None:
    from corsa_plugins.rsft import RSFTSettings

    for where in (RSFTSettings, "corsa_plugins.rsft.settings:RSFTSettings"):
        mine = spec(lambda: None, settings=where)
        assert mine.settings_class() is RSFTSettings
        assert mine.presets() == RSFTSettings.presets()
    assert spec(lambda: None).presets() == ()


def test_every_method_says_what_there_is_to_say() -> None:
    ranks = [known.rank for known in method_specs()]
    assert ranks == sorted(set(ranks)), "no two have the same"
    for known in method_specs():
        assert all((known.title, known.summary, known.source, known.changes)), known.name
        assert "\n" not in known.summary
        assert known.settings_class().load("testbed"), known.name


def test_specs_are_read_without_any_framework_and_say_which_is_missing() -> None:
    code = """
import json
from corsa_plugins.methods.registry import make_method, method_specs, unusable_methods
from corsa_plugins.errors import MissingExtraError
said = {spec.name: [list(spec.needs), str(spec.missing)] for spec in method_specs()}
try:
    make_method("corsa")
except MissingExtraError as error:
    said["error"] = str(error)
print(json.dumps([said, unusable_methods()]))
"""
    said, unusable = json.loads(blocked(FRAMEWORKS, code))
    assert said["rsft"] == [[], "None"]
    assert said["alphaedit"] == [["statistics"], "None"]
    missing = "method corsa needs TRL: pip install 'corsa-plugins[trl]'"
    assert said["corsa"] == [["the extra trl, which is not installed"], missing]
    assert said["error"] == missing
    assert {*said, *unusable} >= {"lora-sft", "f-learning", "rsft-mergekit"}
