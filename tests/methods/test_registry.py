"""Methods by name, with real entry points."""

from __future__ import annotations

from pathlib import Path

import pytest

from corsa_plugins.bench.protocols import make_method, method_names
from corsa_plugins.errors import MissingExtraError, SettingError
from corsa_plugins.rsft import RSFTSettings


@pytest.fixture
def extension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "corsa_test_methods-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: corsa-test-methods\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[corsa_plugins.methods]\nmine = corsa_test_methods:mine\nbroken = corsa_test_broken:x\n"
    )
    (tmp_path / "corsa_test_methods.py").write_text("def mine(rate=1): return ('mine', rate)\n")
    (tmp_path / "corsa_test_broken.py").write_text("raise ModuleNotFoundError('no trl', name='trl')\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("extension")
def test_an_extension_adds_its_methods() -> None:
    assert {"alphaedit", "alphaedit+", "rsft", "rsft-merged", "mine"} <= set(method_names())
    assert make_method("mine", rate=2) == ("mine", 2)
    with pytest.raises(MissingExtraError, match=r"method broken needs TRL: pip install 'corsa-plugins\[trl\]'"):
        make_method("broken")


def test_alphaedit_is_alphaedit_plus_with_its_parts_off() -> None:
    plus, plain = (
        make_method(name, statistics=None, settings="testbed").describe()["settings"]
        for name in ("alphaedit+", "alphaedit")
    )
    assert plus["search"]
    assert plus["smoothing"]
    assert (plain["search"], plain["smoothing"], plain["conflict_weights"]) == (None, None, False)


def test_merging_is_in_the_name() -> None:
    assert make_method("rsft").describe()["settings"]["density"] == 1
    merged = make_method("rsft-merged").describe()["settings"]
    assert (merged["weight"], merged["density"]) == (0.8, 0.2)
    own = make_method("rsft-merged", settings=RSFTSettings(weight=0.5, density=0.1)).describe()["settings"]
    assert (own["weight"], own["density"]) == (0.5, 0.1)
    with pytest.raises(SettingError, match="use rsft-merged"):
        make_method("rsft", settings=RSFTSettings(density=0.1))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rsft-merge", {}, "did you mean rsft-merged"),
        ("zzz", {}, "the methods are alphaedit, alphaedit"),
        ("rsft", {"setings": None}, "setings.*its options are: settings"),
        ("alphaedit", {}, "statistics.*its options are: statistics, settings"),
    ],
)
def test_what_is_not_there_is_named(name: str, options: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make_method(name, **options)
