"""What a model was asked is kept, and told from what it was not."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from corsa_plugins.bench.ability import HarnessFileError, load_ability
from corsa_plugins.bench.ability.kept import KeptScores

SETTINGS = {"limit": 5}
FILES = {"data.jsonl": "abc"}
SCORES = {"t": {"acc": 0.5, "ppl": math.inf}}


def test_scores_survive_the_file(tmp_path: Path) -> None:
    kept = KeptScores({"model": "m"})
    kept.add("t", SETTINGS, FILES, SCORES)
    kept.write(tmp_path / "harness.json")
    assert KeptScores.read(tmp_path / "harness.json") == kept
    assert load_ability(tmp_path / "harness.json") == SCORES


def test_only_the_same_question_is_an_answer_and_the_last_one_counts() -> None:
    kept = KeptScores()
    kept.add("t", SETTINGS, FILES, SCORES)
    kept.add("t", SETTINGS, FILES, {"t": {"acc": 1.0}})
    assert kept.find("t", SETTINGS, FILES) == {"t": {"acc": 1.0}}
    assert kept.find("t", SETTINGS, {}) is not None, "files that are gone were once the same"
    assert kept.find("t", SETTINGS, {"data.jsonl": "abd"}) is None
    assert kept.find("t", {"limit": 6}, FILES) is None
    assert kept.find("u", SETTINGS, FILES) is None


def test_why_scores_are_missing() -> None:
    kept, path = KeptScores(), Path("harness.json")
    assert "has no scores of t; it has nothing" in str(kept.missing(path, "t", SETTINGS))
    kept.add("t", SETTINGS, FILES, SCORES)
    assert "has no scores of u; it has t" in str(kept.missing(path, "u", SETTINGS))
    assert "asked with limit 5 instead of 6" in str(kept.missing(path, "t", {"limit": 6}))
    assert "before its data files were changed" in str(kept.missing(path, "t", SETTINGS))


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"asked": [{"task": "t"}]}')
    with pytest.raises(HarnessFileError, match=r"other\.json holds no scores"):
        KeptScores.read(tmp_path / "other.json")
