"""``corsa diagnose`` as a user calls it, on the testbed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from corsa_plugins.testbed import load_testbed
from tests.support.command import Command, Result


@pytest.fixture
def diagnose(edits: Path, corsa: Command) -> Command:
    """Runs `corsa diagnose` on the testbed's edits."""

    def run(*arguments: object) -> Result:
        given = ("--requests", edits / "first.jsonl", "--statistics", edits / "stats", "--quiet")
        return corsa("diagnose", "--model", load_testbed().path, *given, *arguments)

    return run


def test_conflicts_are_shown_and_written(edits: Path, diagnose: Command) -> None:
    output = edits / "foresight"
    done = diagnose("--settings", "testbed", "--values", "--output", output)
    assert done.exit_code == 0
    assert "mean conflicts of 3 requests" in done.output
    rows = [json.loads(line) for line in (output / "diagnosis.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    assert all(0 <= row["batch_conflict"] <= 1 and 0 <= row["value_probability"] <= 1 for row in rows)
    assert (output / "diagnosis.png").read_bytes().startswith(b"\x89PNG")


def test_layers_may_be_a_range(diagnose: Command) -> None:
    by_number, by_range = diagnose("--layers", "0"), diagnose("--layers", "0-0")
    assert by_number.exit_code == by_range.exit_code == 0
    assert by_range.output == by_number.output
    refused = diagnose("--layers", "1-0")
    assert refused.exit_code == 2
    assert "layers is '1-0': give numbers such as 4,5,6 or a range such as 4-8" in refused.stderr


def test_what_cannot_be_edited_is_said_before_it_is_tried(edits: Path, diagnose: Command) -> None:
    (edits / "narrow.yaml").write_text("layers: [0]\nnull_space: {by: threshold, value: 1.0e-30}\n")
    refused = diagnose("--settings", edits / "narrow.yaml", "--output", edits / "foresight")
    assert refused.exit_code == 2
    assert "null space" in refused.stderr
    refused = diagnose("--layers", "0", "--output", edits / "first.jsonl")
    assert refused.exit_code == 2
    assert "first.jsonl is a file: name a folder" in refused.stderr
