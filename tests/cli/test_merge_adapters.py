"""`corsa merge-adapters`: weights as they are typed, the merged adapter, and the forgetting beside it."""

from __future__ import annotations

import pytest

from corsa_plugins.bench.evaluation import load_evaluation
from corsa_plugins.cli.app import main


def test_the_command(two_adapters, capsys, monkeypatch):
    folder = two_adapters.folder
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as exit:
        main(["merge-adapters", "a", "b", "--weights", ".5", ".5", "-o", "ab", "-r", "a.jsonl", "-r", "b.jsonl",
              "--device", "cpu", "--quiet"])  # fmt: skip
    out = capsys.readouterr().out
    assert exit.value.code == 0, out
    assert "2 adapters by cat, rank 5" in out
    assert "forgetting" in out
    assert load_evaluation(folder / "ab" / "forgetting" / "1-b" / "merged").label == "ab"
    assert (folder / "ab" / "adapter_config.json").exists()
