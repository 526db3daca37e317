"""What other tools have computed."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy
import pytest
import torch

from corsa_plugins.alphaedit.solver.eigenbasis import MomentError
from corsa_plugins.alphaedit.solver.nullspace import NullSpace, NullSpaceRule
from corsa_plugins.alphaedit.statistics.foreign import read_moments, read_projectors
from corsa_plugins.alphaedit.statistics.layer import StatisticsError
from corsa_plugins.alphaedit.statistics.statistics import KeyStatistics
from corsa_plugins.errors import SettingError

HALF = NullSpaceRule("share", 0.5)


class TestForeign:
    @staticmethod
    def write(path: Path, total, count, **more) -> Path:
        arrays = {"mom2.constructor": "util.runningstats.SecondMoment()", "mom2.mom2": total, "mom2.count": count}
        numpy.savez(path, **{**arrays, "sample_size": 100, **more})
        return path

    def test_second_moments_of_rome_are_means_after_reading(self, tmp_path, statistics, tiny_llama, caplog):
        files = [
            self.write(
                tmp_path / f"model.layers.{layer}.mlp.down_proj_float32_mom2_100000.npz",
                (statistics.moment(layer) * 800).float().numpy(), 800,
            )
            for layer in (0, 1)
        ]  # fmt: skip
        with caplog.at_level(logging.WARNING):
            collected = read_moments(tmp_path, tiny_llama)
        assert "do not say which model they were made of" in caplog.text
        assert collected.layers == (0, 1)
        for layer in (0, 1):
            assert collected.count(layer) == 800
            assert collected.sample(layer) is None
            assert torch.allclose(collected.moment(layer), statistics.moment(layer), rtol=1e-5, atol=1e-7)
        by_hand = read_moments({1: files[0]})
        assert torch.equal(by_hand.moment(1), collected.moment(0))
        collected.save(tmp_path / "saved")
        again = KeyStatistics.load(tmp_path / "saved")
        assert (again.fingerprint, again.sample(0)) == (None, None)
        assert again.null_space(0, HALF).n_null == 32

    def test_what_is_no_second_moment_is_refused(self, tmp_path, tiny_llama):
        def message(files, error=StatisticsError) -> str:
            with pytest.raises(error) as caught:
                read_moments(files, tiny_llama)
            return str(caught.value)

        name = "transformer.h.1.mlp.c_proj_float32_mom2_100000.npz"
        assert "no such file" in message(tmp_path / name)
        assert "no .npz file in this folder" in message(tmp_path)
        numpy.savez(tmp_path / name, mean=numpy.eye(2))
        assert "holds mean: no mom2.mom2" in message(tmp_path / name)
        (tmp_path / name).write_bytes(b"PK\x03\x04 nonsense")
        assert "damaged" in message(tmp_path / name)
        assert "of 0 tokens" in message(self.write(tmp_path / name, numpy.eye(64), 0))
        assert "32 wide" in message(self.write(tmp_path / name, numpy.eye(32), 5))
        assert "NaN" in message(self.write(tmp_path / name, numpy.eye(64) * numpy.nan, 5), MomentError)
        assert "pickle" in message(self.write(tmp_path / name, numpy.array([{}], dtype=object), 5))
        second = self.write(tmp_path / "h.1.again.npz", numpy.eye(64), 5)
        assert "are both of layer 1" in message([tmp_path / name, second])
        assert "does not say which layer" in message(self.write(tmp_path / "moment.npz", numpy.eye(64), 5))

    def test_projectors_of_alphaedit_become_null_spaces(self, tmp_path, statistics, tiny_llama):
        spaces = [statistics.null_space(layer, HALF) for layer in (0, 1)]
        identity = torch.eye(64, dtype=torch.float64)
        stack = torch.stack([space.combine(space.coordinates(identity)[: space.n_null]) for space in spaces]).float()
        path = tmp_path / "null_space_project.pt"
        torch.save(stack, path)
        collected = read_projectors(path, (0, 1), tiny_llama)
        for layer, space in zip((0, 1), spaces, strict=True):
            assert isinstance(collected[layer], NullSpace)
            assert collected[layer].n_null == 32
            keys = torch.randn(64, 4)
            projected, expected = (s.combine(s.coordinates(keys)[: s.n_null]) for s in (collected[layer], space))
            assert torch.allclose(projected, expected, atol=1e-4)
        with pytest.raises(SettingError, match="holds 2 projectors"):
            read_projectors(path, (0,))
        torch.save(stack[0, :32, :32], path)
        with pytest.raises(StatisticsError, match="32 wide, and its keys are 64"):
            read_projectors(path, (0,), tiny_llama)
        torch.save({"P": stack}, path)
        with pytest.raises(StatisticsError, match="holds no projectors"):
            read_projectors(path, (0,))
        path.write_bytes(b"nothing")
        with pytest.raises(StatisticsError, match="cannot be read"):
            read_projectors(path, (0,))
        with pytest.raises(StatisticsError, match="no such file"):
            read_projectors(tmp_path / "none.pt", (0,))
