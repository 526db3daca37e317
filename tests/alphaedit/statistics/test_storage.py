"""A folder of statistics: what was saved, whole, or a sentence that says what is wrong."""

from __future__ import annotations

import json
import re

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from corsa_plugins.alphaedit.solver.eigenbasis import FileVectors
from corsa_plugins.alphaedit.solver.nullspace import NullSpaceRule
from corsa_plugins.alphaedit.statistics.collect import check_folder
from corsa_plugins.alphaedit.statistics.layer import StatisticsError
from corsa_plugins.alphaedit.statistics.statistics import KeyStatistics
from tests.support.flips import flipped_copies

HALF = NullSpaceRule("share", 0.5)


class TestFolder:
    def test_a_folder_gives_back_what_was_saved(self, tmp_path, statistics):
        path = statistics.save(tmp_path / "a" / "stats")
        assert path == tmp_path / "a" / "stats" / "statistics.json"
        loaded = KeyStatistics.load(tmp_path / "a" / "stats")
        assert loaded.layers == (0, 1)
        assert loaded.fingerprint == statistics.fingerprint
        assert loaded.about == statistics.about
        keys = torch.randn(64, 5)
        for layer in loaded.layers:
            assert (loaded.width(layer), loaded.count(layer)) == (64, 800)
            assert torch.equal(loaded.moment(layer), statistics.moment(layer))
            assert torch.equal(loaded.sample(layer), statistics.sample(layer))
            assert torch.equal(loaded.eigenvalues(layer), statistics.eigenvalues(layer))
            first, second = loaded.null_space(layer, HALF), statistics.null_space(layer, HALF)
            assert torch.equal(first.coordinates(keys), second.coordinates(keys))
            assert (first.n_null, first.share) == (32, 0.5)

    def test_eigenvectors_are_computed_once_and_read_in_parts(self, tmp_path, statistics, monkeypatch):
        statistics.save(tmp_path)

        def never(*args, **kwargs):
            raise AssertionError("eigenvectors were computed again")

        monkeypatch.setattr(torch.linalg, "eigh", never)
        space = KeyStatistics.load(tmp_path).null_space(1, HALF)
        assert isinstance(space.basis.vectors, FileVectors)
        with safe_open(tmp_path / "layer_1.eigen.safetensors", framework="pt") as file:
            assert file.get_slice("eigenvectors").get_shape() == [64, 64]
            rows = file.get_tensor("eigenvectors")
        moment = KeyStatistics.load(tmp_path).moment(1)
        assert torch.allclose(rows.mT @ torch.diag(space.eigenvalues) @ rows, moment, atol=1e-10)

    def test_others_replace_what_was_there(self, tmp_path, statistics):
        statistics.save(tmp_path)
        KeyStatistics({1: statistics.by_layer[1]}).save(tmp_path)
        loaded = KeyStatistics.load(tmp_path)
        assert (loaded.layers, loaded.fingerprint) == ((1,), None)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "layer_1.eigen.safetensors", "layer_1.safetensors", "manifest.json", "statistics.json",
        ]  # fmt: skip

    @pytest.mark.parametrize("after", range(4))
    def test_half_a_folder_never_looks_whole(self, tmp_path, statistics, monkeypatch, after):
        statistics.save(tmp_path)
        plain, calls = safetensors.torch.save_file, []

        def fails(*args, **kwargs):
            calls.append(1)
            if len(calls) > after:
                raise KeyboardInterrupt
            plain(*args, **kwargs)

        monkeypatch.setattr("safetensors.torch.save_file", fails)
        with pytest.raises(KeyboardInterrupt):
            statistics.save(tmp_path)
        with pytest.raises(StatisticsError, match=r"statistics\.json is missing"):
            KeyStatistics.load(tmp_path)
        assert not list(tmp_path.glob(".*"))

    def test_damage_is_noticed(self, tmp_path, statistics):
        statistics.save(tmp_path / "a")
        statistics.save(tmp_path / "b")
        (tmp_path / "a" / "manifest.json").unlink()  # each damage by itself; the manifest would tell of all alike

        def message(error=StatisticsError) -> str:
            with pytest.raises(error) as caught:
                KeyStatistics.load(tmp_path / "a")
            return str(caught.value)

        good = (tmp_path / "a" / "layer_1.safetensors").read_bytes()
        (tmp_path / "a" / "layer_1.safetensors").write_bytes(good[:-8])
        assert "layer_1.safetensors has" in message()
        assert "cut short" in message()
        (tmp_path / "a" / "layer_1.safetensors").write_bytes((tmp_path / "b" / "layer_1.safetensors").read_bytes())
        assert "do not mix the files of two folders" in message()
        (tmp_path / "a" / "layer_1.safetensors").write_bytes((tmp_path / "a" / "layer_0.safetensors").read_bytes())
        assert "is of other statistics" in message()
        (tmp_path / "a" / "layer_1.safetensors").write_bytes(b"\xff" * len(good))
        assert "is damaged" in message()
        (tmp_path / "a" / "layer_1.safetensors").unlink()
        assert "layer_1.safetensors is missing" in message()
        (tmp_path / "a" / "layer_1.safetensors").write_bytes(good)
        manifest = tmp_path / "a" / "statistics.json"
        content = json.loads(manifest.read_text())
        assert KeyStatistics.load(tmp_path / "a").layers == (0, 1)
        for change, expected in [
            ({"version": 99}, "version 99"),
            ({"layers": 3}, "not what this program writes"),
            ({"fingerprint": {}}, "not the fingerprint"),
            ({"layers": {"1": {**content["layers"]["1"], "width": 32}}}, "says"),
        ]:
            manifest.write_text(json.dumps({**content, **change}))
            assert expected in message()
        manifest.write_text("{")
        assert "statistics.json is damaged" in message()

    def test_one_flipped_bit_anywhere_is_noticed(self, tmp_path, statistics):
        statistics.save(tmp_path / "stats")
        names = [path.name for path in (tmp_path / "stats").iterdir()]
        assert len(names) == 6
        for name in names:
            for flipped in flipped_copies(tmp_path / "stats", name, 8):
                with pytest.raises(StatisticsError, match=re.escape(name)):
                    self._read_all(KeyStatistics.load(flipped))
        self._read_all(KeyStatistics.load(tmp_path / "stats"))

    def _read_all(self, loaded):
        for layer in (0, 1):
            loaded.sample(layer)
            loaded.null_space(layer, HALF)

    def test_statistics_from_before_manifests_are_read_with_a_warning(self, tmp_path, statistics, caplog):
        statistics.save(tmp_path / "stats")
        (tmp_path / "stats" / "manifest.json").unlink()
        loaded = KeyStatistics.load(tmp_path / "stats")
        assert "stats has no manifest.json with checksums" in caplog.text
        caplog.clear()
        loaded.save(tmp_path / "again")
        self._read_all(KeyStatistics.load(tmp_path / "again"))
        assert not caplog.messages

    def test_a_strangers_file_is_neither_replaced_nor_removed(self, tmp_path, statistics):
        safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "layer_7.safetensors")
        (tmp_path / "layer_notes.safetensors").write_text("mine")
        with pytest.raises(StatisticsError, match=r"layer_7\.safetensors is not of statistics"):
            statistics.save(tmp_path)
        with pytest.raises(StatisticsError, match=r"layer_7\.safetensors is not of statistics"):
            check_folder(tmp_path, fresh=True)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["layer_7.safetensors", "layer_notes.safetensors"]
        (tmp_path / "layer_7.safetensors").unlink()
        (tmp_path / "layer_notes.safetensors").unlink()
        (tmp_path / "notes.txt").write_text("mine")  # is in nobody's way
        statistics.save(tmp_path)
        assert (tmp_path / "notes.txt").exists()

    def test_what_is_not_there_is_said(self, tmp_path, statistics):
        with pytest.raises(StatisticsError, match="no such folder of statistics"):
            KeyStatistics.load(tmp_path / "nowhere")
        with pytest.raises(StatisticsError, match="no statistics"):
            KeyStatistics.load(tmp_path)
        with pytest.raises(StatisticsError, match="no statistics of layer 3, there are 0, 1"):
            statistics.null_space(3)
        (tmp_path / "file").write_text("")
        with pytest.raises(NotADirectoryError):
            statistics.save(tmp_path / "file")
