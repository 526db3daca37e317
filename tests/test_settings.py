"""The base of settings: what is right comes back as it was, what is wrong is named with what to give instead."""

from __future__ import annotations

import copy
import json
import math
import pickle
import sys
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from corsa_plugins.alphaedit import AlphaEditSettings
from corsa_plugins.alphaedit.solver.closed_form import SearchSettings
from corsa_plugins.alphaedit.solver.nullspace import NullSpaceRule
from corsa_plugins.alphaedit.solver.smoothing import SmoothingSettings
from corsa_plugins.alphaedit.values.settings import ValueSettings
from corsa_plugins.bench.conflict_sets import ConflictPlan
from corsa_plugins.corsa import CorsaSettings
from corsa_plugins.errors import SettingError
from corsa_plugins.rsft import RSFTSettings
from corsa_plugins.settings import (
    BlockNumber,
    Count,
    InvalidSettingsError,
    Positive,
    Settings,
    Share,
    check_fields,
)
from corsa_plugins.testbed.facts import WorldConfig
from corsa_plugins.testbed.recipe import ModelConfig, TestbedRecipe, TrainingConfig

OURS: list[Any] = [
    AlphaEditSettings, ConflictPlan, CorsaSettings, ModelConfig, NullSpaceRule, RSFTSettings, SearchSettings,
    SmoothingSettings, TestbedRecipe, TrainingConfig, ValueSettings, WorldConfig,
]  # fmt: skip


@dataclass(frozen=True)
class Part(Settings):
    rate: Positive = 0.1
    kind: Literal["slow", "fast"] = "slow"


@dataclass(frozen=True)
class Whole(Settings):
    layers: tuple[BlockNumber, ...]
    share: Share = 0.5
    count: Annotated[int, Field(ge=2, le=5)] = 3
    name: str | None = None
    switch: bool = True
    part: Part = field(default_factory=Part)
    extra: Part | None = None
    free: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        if self.switch and len(self.layers) > 4:
            raise self.refused("layers", "with a switch it must be at most four")


finite = st.floats(allow_nan=False, allow_infinity=False)
parts = st.builds(
    Part, rate=st.floats(0, exclude_min=True, allow_infinity=False), kind=st.sampled_from(["slow", "fast"])
)
wholes = st.builds(
    Whole,
    layers=st.lists(st.integers(0, 10**6), max_size=4),
    share=st.floats(0, 1) | st.integers(0, 1),
    count=st.integers(2, 5),
    name=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    switch=st.booleans(),
    part=parts,
    extra=st.none() | parts,
    free=st.dictionaries(st.text("abc"), st.integers() | st.lists(finite)),
)

no_numbers = st.booleans() | st.none() | st.text() | st.binary() | st.just([1]) | st.sampled_from([math.nan, math.inf])
WRONG: dict[str, st.SearchStrategy[Any]] = {
    "layers": st.integers() | st.text() | st.lists(st.integers(max_value=-1), min_size=1) | st.just([True]) | st.none(),
    "share": no_numbers | st.floats(min_value=1, exclude_min=True) | st.integers(max_value=-1),
    "count": no_numbers | st.integers(max_value=1) | st.integers(min_value=6) | finite,
    "name": st.integers() | st.booleans() | st.lists(st.text()),
    "switch": st.integers() | st.text() | st.none(),
    "part": st.none() | st.integers() | st.text() | st.lists(st.text()),
    "extra": st.integers() | st.text() | st.lists(st.text()),
    "free": st.integers() | st.text() | st.lists(st.text()),
}


@given(wholes)
def test_settings_come_back_through_yaml_json_and_pickle(whole: Whole) -> None:
    assert Whole.from_dict(yaml.safe_load(yaml.safe_dump(whole.as_dict()))) == whole
    assert Whole.from_dict(json.loads(json.dumps(whole.as_dict()))) == whole
    assert pickle.loads(pickle.dumps(whole)) == copy.deepcopy(whole) == replace(whole) == whole


@settings(max_examples=20)
@given(wholes)
def test_settings_come_back_from_a_file(tmp_path_factory: pytest.TempPathFactory, whole: Whole) -> None:
    folder = tmp_path_factory.mktemp("settings")
    (folder / "whole.yaml").write_text(yaml.safe_dump(whole.as_dict()), encoding="utf-8")
    (folder / "whole.json").write_text(json.dumps(whole.as_dict()), encoding="utf-8")
    assert Whole.load(folder / "whole.yaml") == Whole.load(str(folder / "whole.json")) == whole


@given(parts)
def test_settings_are_values(part: Part) -> None:
    assert hash(part) == hash(Part(part.rate, part.kind))
    assert {part: 1}[Part.from_dict(part.as_dict())] == 1
    with pytest.raises(FrozenInstanceError):
        part.rate = 1.0  # type: ignore[misc]


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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layers": [-1]}, r"layers is \[-1\]: it must be a list, each item the number of a block, counted from 0$"),
        ({"share": 2}, "share is 2: it must be a number between 0 and 1$"),
        ({"share": math.nan}, "share is nan: it must be a finite number between 0 and 1$"),
        ({"share": "5e-4"}, r"share is '5e-4': .* is text: write 5\.0e-4"),
        ({"count": True}, "count is True: it must be an integer between 2 and 5$"),
        ({"name": 3}, "name is 3: it must be text, or None$"),
        ({"switch": "on"}, "switch is 'on': it must be true or false$"),
        ({"part": 3}, "part is 3: it must be of class Part, or a mapping of its settings$"),
        ({"part": {"rate": 0}}, r"^part\.rate is 0: it must be a number over 0$"),
        ({"part": {"kind": "fsat"}}, r"^part\.kind is 'fsat': it must be one of slow, fast$"),
        ({"part": {"rat": 1}}, r"^part\.rat is no setting: did you mean rate\?$"),
        ({"extra": {"rate": 0}}, r"^extra\.rate is 0"),
        ({"layers": [1, 2, 3, 4, 5]}, r"layers is \(1, 2, 3, 4, 5\): with a switch it must be at most four$"),
        ({"name": "x" * 500 + "\n", "free": object()}, "^free is <?object[^\n]{,60}>: it must be a mapping"),
    ],
)
def test_the_message_says_what_it_must_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Whole.from_dict({"layers": [1], **values})


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


def test_what_holds_between_settings_is_checked_whenever_they_are_made() -> None:
    five = Whole(tuple(range(5)), switch=False)
    with pytest.raises(SettingError, match="at most four"):
        replace(five, switch=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"layers: [1\n", "is not YAML"),
        (b"- 1\n", "should be a mapping"),
        (b"layers: [1]\n# \xff\n", "is not UTF-8 text"),
        (b"layers: [1]\npart: {rate: 0}\n", r": part\.rate is 0"),
        (b"layers: [1]\nshare: 5e-1\n", ": share is '5e-1'.*text"),
        (b"", ": layers is missing"),
        (b"layers: [1, 2, 3, 4, 5]", ": layers is .*at most four"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "whole.yaml").write_bytes(text)
    with pytest.raises(SettingError, match=rf"^settings .*whole\.yaml.*{message}"):
        Whole.load(tmp_path / "whole.yaml")


def test_a_file_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError, match=rf"^settings no\.yaml: no such file \(looked in {tmp_path}\): name a YAML"):
        Whole.load("no.yaml")
    (tmp_path / "whole.json").write_text("{'layers': [1]}")
    with pytest.raises(SettingError, match=r"whole\.json is not JSON"):
        Whole.load("whole.json")


# ------------------------------------------------------------------------------------------ presets


@pytest.mark.parametrize("kind", [AlphaEditSettings, RSFTSettings])
def test_presets_load_by_name_and_come_back(kind: Any) -> None:
    assert "testbed" in kind.presets()
    for name in kind.presets():
        assert kind.from_dict(yaml.safe_load(yaml.safe_dump(kind.load(name).as_dict()))) == kind.load(name)
    with pytest.raises(SettingError, match=r"testbde: no such file .*, nor a preset; the presets are .*testbed"):
        kind.load("testbde")


def test_a_file_goes_before_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert RSFTSettings.load("testbed") == RSFTSettings(layer=1)
    (tmp_path / "testbed").write_text("layer: 2\n")
    assert RSFTSettings.load("testbed") == RSFTSettings(layer=2)


def test_presets_are_the_files_beside_the_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Whole.presets() == ()
    package = tmp_path / "corsa_test_settings"
    (package / "presets").mkdir(parents=True)
    (package / "presets" / "slow.yaml").write_text("rate: 0.01\n")
    (package / "presets" / "notes.txt").write_text("no preset")
    (package / "__init__.py").write_text("")
    (package / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom corsa_plugins.settings import Positive, Settings\n"
        "@dataclass(frozen=True)\nclass Mine(Settings):\n    rate: Positive = 0.1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from corsa_test_settings.mine import Mine  # type: ignore[import-not-found]

    assert Mine.presets() == ("slow",)
    assert Mine.load("slow") == Mine(0.01)
    for name in [name for name in sys.modules if name.startswith("corsa_test_settings")]:
        del sys.modules[name]


# ------------------------------------------------------------------------------------------ lenient


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


# ------------------------------------------------------------------------------------------ every class


NEEDED: dict[Any, dict[str, Any]] = {AlphaEditSettings: {"layers": [4]}, ConflictPlan: {"kind": "prior", "size": 3}}


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, field.name) for kind in OURS for field in fields(kind)],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_every_setting_is_checked_and_says_in_words_what_it_must_be(kind: Any, name: str) -> None:
    with pytest.raises(
        SettingError, match=rf"^{name} is <object object at \w+>: it must be (?!anything|of class object)"
    ):
        kind.from_dict({**NEEDED.get(kind, {}), name: object()})


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_every_class_has_defaults_that_come_back(kind: Any) -> None:
    default = kind.from_dict(NEEDED.get(kind, {}))
    assert kind.from_dict(json.loads(json.dumps(default.as_dict()))) == default == replace(default)
