"""Settings from files, and files that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings

from corsa_plugins.errors import SettingError
from tests.support.settings import Whole, wholes


@settings(max_examples=20)
@given(wholes)
def test_settings_come_back_from_a_file(tmp_path_factory: pytest.TempPathFactory, whole: Whole) -> None:
    folder = tmp_path_factory.mktemp("settings")
    (folder / "whole.yaml").write_text(yaml.safe_dump(whole.as_dict()), encoding="utf-8")
    (folder / "whole.json").write_text(json.dumps(whole.as_dict()), encoding="utf-8")
    assert Whole.load(folder / "whole.yaml") == Whole.load(str(folder / "whole.json")) == whole


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
