"""What is right comes back as it was; presets are found beside the class."""

from __future__ import annotations

import copy
import json
import pickle
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given

from corsa_plugins.alphaedit import AlphaEditSettings
from corsa_plugins.errors import SettingError
from corsa_plugins.rsft import RSFTSettings
from tests.support.settings import Part, Whole, parts, wholes


@given(wholes)
def test_settings_come_back_through_yaml_json_and_pickle(whole: Whole) -> None:
    assert Whole.from_dict(yaml.safe_load(yaml.safe_dump(whole.as_dict()))) == whole
    assert Whole.from_dict(json.loads(json.dumps(whole.as_dict()))) == whole
    assert pickle.loads(pickle.dumps(whole)) == copy.deepcopy(whole) == replace(whole) == whole


@given(parts)
def test_settings_are_values(part: Part) -> None:
    assert hash(part) == hash(Part(part.rate, part.kind))
    assert {part: 1}[Part.from_dict(part.as_dict())] == 1
    with pytest.raises(FrozenInstanceError):
        part.rate = 1.0  # type: ignore[misc]


def test_what_holds_between_settings_is_checked_whenever_they_are_made() -> None:
    five = Whole(tuple(range(5)), switch=False)
    with pytest.raises(SettingError, match="at most four"):
        replace(five, switch=True)


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
