"""The cache: built once, verified always, never half there."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from corsa_plugins.testbed import BrokenTestbedError, Testbed, cache, load_testbed, reduced_recipe
from corsa_plugins.testbed.manifest import check_manifest


@pytest.fixture
def copy_of_cache(reduced: Testbed, reduced_cache: Path, tmp_path: Path) -> Path:
    shutil.copytree(reduced_cache, tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch, reduced: Testbed) -> list[Path]:
    """Counts builds. Each is a copy of the one already made, because training again would tell nothing more."""
    made: list[Path] = []

    def build(recipe, path):
        assert recipe == reduced.recipe
        shutil.copytree(reduced.path, path, dirs_exist_ok=True)
        made.append(path)

    monkeypatch.setattr(cache, "build_testbed", build)
    return made


def test_a_second_load_builds_nothing(copy_of_cache: Path, builds: list[Path]) -> None:
    testbed = load_testbed(reduced_recipe(), cache_dir=copy_of_cache)
    assert not builds
    assert testbed.path.parent == copy_of_cache


def test_loads_do_not_share_weights(copy_of_cache: Path) -> None:
    first, second = (load_testbed(reduced_recipe(), cache_dir=copy_of_cache) for _ in range(2))
    before = [p.clone() for p in second.model.parameters()]
    for parameter in first.model.parameters():
        parameter.data.zero_()
    assert all((a == b).all() for a, b in zip(before, second.model.parameters(), strict=True))


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def _flip_a_bit(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "truncated weights": _truncate,
    "flipped bit": _flip_a_bit,
    "missing file": lambda folder: (folder / "tokenizer.json").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "garbled manifest": lambda folder: (folder / "manifest.json").write_text("[1, 2"),
    "foreign manifest": lambda folder: (folder / "manifest.json").write_text('{"recipe": "x", "sha256": {}}'),
    "empty folder": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_cache_is_rebuilt_with_a_warning(
    damage, copy_of_cache: Path, builds: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy_of_cache / f"testbed-{reduced_recipe().key()}"
    damage(folder)
    with caplog.at_level(logging.WARNING):
        testbed = load_testbed(reduced_recipe(), cache_dir=copy_of_cache)
    assert len(builds) == 1
    assert "damaged" in caplog.text
    assert testbed.path == folder
    check_manifest(folder, reduced_recipe().key())
    assert [p.name for p in copy_of_cache.iterdir()] == [folder.name], "scratch folders were left behind"


def test_an_interrupted_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(recipe, path):
        (path / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "build_testbed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_testbed(reduced_recipe(), cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_build_that_lost_the_race_keeps_the_winners_testbed(
    tmp_path: Path, reduced: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / f"testbed-{reduced_recipe().key()}"

    def slow_build(recipe, path):
        shutil.copytree(reduced.path, path, dirs_exist_ok=True)
        shutil.copytree(reduced.path, folder)
        (folder / "of the winner").touch()

    monkeypatch.setattr(cache, "build_testbed", slow_build)
    assert load_testbed(reduced_recipe(), cache_dir=tmp_path).path == folder
    check_manifest(folder, reduced_recipe().key())
    assert (folder / "of the winner").exists()
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_the_cache_folder_is_the_argument_else_the_variable_else_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "variable"))
    assert cache.cache_root(tmp_path / "argument") == tmp_path / "argument"
    assert cache.cache_root() == tmp_path / "variable"
    monkeypatch.delenv(cache.CACHE_VARIABLE)
    assert "corsa-plugins" in cache.cache_root().parts[-1]


def test_the_key_depends_on_every_part_of_the_recipe() -> None:
    recipe = reduced_recipe()
    others = [
        replace(recipe, seed=1),
        replace(recipe, world=replace(recipe.world, seed=1)),
        replace(recipe, model=replace(recipe.model, layers=3)),
        replace(recipe, training=replace(recipe.training, steps=1)),
    ]
    assert len({recipe.key(), *(other.key() for other in others)}) == 5
    assert type(recipe).from_dict(recipe.as_dict()) == recipe


def test_damaged_shipped_files_are_reported_not_rebuilt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shipped: Testbed
) -> None:
    shutil.copytree(shipped.path, tmp_path / "data")
    _flip_a_bit(tmp_path / "data")
    monkeypatch.setattr(cache, "SHIPPED", tmp_path / "data")
    with pytest.raises(BrokenTestbedError, match="Reinstall"):
        load_testbed()
