"""Settings of an edit: presets load, and what cannot be is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from corsa_plugins.alphaedit.settings import AlphaEditSettings, preset_names
from corsa_plugins.errors import SettingError


@pytest.mark.parametrize("name", preset_names())
def test_presets_load(name: str) -> None:
    settings = AlphaEditSettings.load(name)
    assert AlphaEditSettings.from_dict(json.loads(json.dumps(settings.as_dict()))) == settings
    assert settings.search is not None
    assert settings.alphaedit().search is None


def test_settings_refuse_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"ridgee is no setting: did you mean ridge\?"):
        AlphaEditSettings.from_dict({"layers": [1], "ridgee": 1})
    with pytest.raises(SettingError, match=r"values\.step is no setting: did you mean steps\?"):
        AlphaEditSettings.from_dict({"layers": [1], "values": {"step": 1}})
    with pytest.raises(SettingError, match="layers is missing"):
        AlphaEditSettings.from_dict({})
    with pytest.raises(SettingError, match=r"^values\.lr is -1"):
        AlphaEditSettings.from_dict({"layers": [1], "values": {"lr": -1}})
    for layers in ([], [2, 1], [1, 1], "1", [-1], [True], None):
        with pytest.raises(SettingError, match="layers is"):
            AlphaEditSettings.from_dict({"layers": layers})
    for name, value in {
        "ridge": 0,
        "ridge_unit": "relativ",
        "prior_weight": float("nan"),
        "search": "off",
        "conflict_weights": 1,
        "n_contexts": -1,
        "dtype": "float16",
        "reach": 2,
    }.items():
        with pytest.raises(SettingError, match=f"{name} is"):
            AlphaEditSettings.from_dict({"layers": [1], name: value})
    with pytest.raises(SettingError, match=r"llama9: no such file .*, nor a preset; the presets are .*testbed"):
        AlphaEditSettings.load("llama9")
    (tmp_path / "bad.yaml").write_text("layers: [1\n")
    with pytest.raises(SettingError, match=r"bad\.yaml is not YAML"):
        AlphaEditSettings.load(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(SettingError, match="should be a mapping"):
        AlphaEditSettings.load(tmp_path / "list.yaml")


def test_settings_that_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"layers: [1]\n# \xff\n")
    with pytest.raises(SettingError, match=r"bytes\.yaml is not UTF-8"):
        AlphaEditSettings.load(tmp_path / "bytes.yaml")


def test_published_thresholds_are_in_the_presets_of_their_models_and_nowhere_else() -> None:
    searches = {name: AlphaEditSettings.load(name).search for name in preset_names()}
    published = {name: search.threshold for name, search in searches.items() if search and search.threshold is not None}
    assert published == {"gpt2-xl": 3.0e-4, "gpt-j-6b": 1.2e-4, "llama3-8b": 1.4e-4, "testbed": 7.0e-3}
    default = AlphaEditSettings(layers=(0,)).search
    assert default is not None
    assert default.decides == "graded"
