"""What `make gpu` runs on a CUDA machine, on small shapes here: every part's own code from end to end."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_parts import PARTS, Place, Row, Unavailable


def test_without_a_cuda_device_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert gpu.main(["--output", str(tmp_path / "out")]) == 2
    assert "no CUDA device" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", [part for part in PARTS if part != "tests"])
def test_every_part_runs_and_gives_its_figures(part: str, tmp_path: Path) -> None:
    assert gpu.main(["--tiny", "--device", "cpu", "--part", part, "--output", str(tmp_path)]) == 0
    result = json.loads((tmp_path / f"{part}.json").read_text())
    table = (tmp_path / "table.md").read_text()
    if "unavailable" in result:
        assert f"| {part} | | | | not run: pip install" in " ".join(table.split(" " * 2)).replace("|  |", "| |")
        return
    assert all(row["seconds"] > 0 for row in result["rows"])
    assert all(f"| {row['what']} |" in table for row in result["rows"])
    assert any(row.get("ratio", 0) > 0 for row in result["rows"])
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md"}  # models are gone


def test_a_finished_part_is_not_run_again_and_one_that_failed_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs: list[str] = []

    def fails(place: Place) -> list[Row]:
        runs.append("fails")
        if runs.count("fails") == 1:
            raise RuntimeError("out of luck | here")
        return [{"what": "luck"}]

    def needs(place: Place) -> list[Row]:
        runs.append("needs")
        raise Unavailable("pip install luck")

    monkeypatch.setattr(gpu, "PARTS", {"fails": fails, "needs": needs})
    given = ["--tiny", "--device", "cpu", "--output", str(tmp_path)]
    assert gpu.main(given) == 1
    assert "failed: RuntimeError: out of luck / here" in capsys.readouterr().out
    assert gpu.main(given) == 0
    assert "not run: pip install luck" in capsys.readouterr().out
    assert gpu.main(given) == 0
    assert (runs.count("fails"), runs.count("needs")) == (2, 3)
    assert gpu.main([*given, "--again"]) == 0
    assert runs.count("fails") == 3


def test_the_tests_are_found_where_the_mark_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        given.append(command)
        said = "FAILED tests/a.py::test_b - x\n1 failed in 2.00s" if len(given) > 1 else "== 9 passed in 2.00s =="
        return subprocess.CompletedProcess(command, len(given) - 1, said, "")

    monkeypatch.setattr("subprocess.run", run)
    (row,) = PARTS["tests"](Place("cpu", True, tmp_path))
    assert row["note"] == "9 passed in 2.00s"
    with pytest.raises(RuntimeError, match=r"1 failed in 2\.00s, tests/a\.py::test_b"):
        PARTS["tests"](Place("cpu", True, tmp_path))
    assert any(path.endswith("test_trainer_gpu.py") for path in given[0])
    assert not any(path.endswith("test_gpu.py") for path in given[0] if "benchmarks" in path)
