"""``corsa testbed``."""

from __future__ import annotations

import json

from corsa_plugins.data.reading import read_probes, read_requests


def test_rebuilding_needs_a_place(corsa):
    result = corsa("testbed", "--rebuild")
    assert result.exit_code == 2
    assert "--rebuild needs --out" in result.stderr


def test_the_requests_files_of_a_testbed_are_what_evaluate_reads(corsa, tmp_path):
    result = corsa("testbed", "--out", tmp_path / "world")
    assert result.exit_code == 0, result.output
    for arguments in ([], ["--rebuild"]):
        again = corsa("testbed", "--out", tmp_path / "world", *arguments)
        assert (again.exit_code, "world is not empty: name a new folder" in again.stderr) == (2, True)
    rounds = [read_requests(tmp_path / "world" / f"round_{number}.jsonl") for number in (1, 2, 3)]
    assert [len(requests) for requests in rounds] == [100, 100, 100]
    assert len(read_probes(tmp_path / "world" / "untouched.jsonl")) == 500
    assert json.loads((tmp_path / "world" / "model" / "config.json").read_text())["model_type"]
