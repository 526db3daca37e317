"""A training that two methods begin with: made once, taken as it was, and never half of one."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from corsa_plugins.methods.shared import shared_seconds, trained_once


class Training:
    """Writes a file, and counts how often it did."""

    def __init__(self, text: str = "weights", seconds: float = 0.0) -> None:
        self.text, self.seconds, self.made = text, seconds, 0

    def __call__(self, folder: Path) -> None:
        self.made += 1
        (folder / "weights").write_text(self.text)
        time.sleep(self.seconds)


def updates(tmp_path: Path, n: int) -> list[Path]:
    folders = [tmp_path / f"update {number}" for number in range(n)]
    for folder in folders:
        folder.mkdir()
    return folders


def test_the_second_takes_what_the_first_made_and_is_charged_for_it(tmp_path: Path) -> None:
    training, (first, second, other) = Training(seconds=0.2), updates(tmp_path, 3)
    assert trained_once(tmp_path / "shelf", {"model": "a"}, first, training)
    begun = time.monotonic()
    assert not trained_once(tmp_path / "shelf", {"model": "a"}, second, training)
    took = time.monotonic() - begun
    assert [file.name for file in first.iterdir()] == ["weights"]
    assert (second / "weights").read_text() == "weights"
    assert shared_seconds(first) == 0
    assert shared_seconds(second) + took >= 0.2
    assert trained_once(tmp_path / "shelf", {"model": "b"}, other, training)
    assert training.made == 2


def test_a_training_that_fails_is_not_taken(tmp_path: Path) -> None:
    folder = updates(tmp_path, 1)[0]

    def fail(new: Path) -> None:
        (new / "weights").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained_once(tmp_path / "shelf", {}, folder, fail)
    assert list(folder.iterdir()) == []
    assert trained_once(tmp_path / "shelf", {}, folder, Training())


def test_a_damaged_training_is_made_again(tmp_path: Path) -> None:
    training, (first, second) = Training(), updates(tmp_path, 2)
    trained_once(tmp_path / "shelf", {}, first, training)
    (file,) = (tmp_path / "shelf").rglob("weights")
    file.write_text("others")
    assert trained_once(tmp_path / "shelf", {}, second, training)
    assert (second / "weights").read_text() == "weights"
    assert json.loads(next((tmp_path / "shelf").rglob("shared.json")).read_text())["seconds"] >= 0
