"""``corsa diagnose`` as a user calls it, on the testbed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from corsa_plugins.data.reading import read_requests
from corsa_plugins.methods.registry import method_spec
from corsa_plugins.testbed import load_testbed
from tests.fixtures.alphaedit import TestbedBench
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


@pytest.mark.parametrize("name", ["memit", "blue", "memit+"])
def test_settings_are_those_of_the_method(
    edits: Path, diagnose: Command, testbed_bench: TestbedBench, name: str
) -> None:
    kind = method_spec(name).settings_class()
    settings = kind.of(kind.load("testbed"))
    quick = replace(settings, layers=(0,), values=replace(settings.values, steps=2))
    file = edits / "quick.yaml"
    file.write_text(json.dumps(quick.as_dict()), encoding="utf-8")  # YAML reads it
    done = diagnose("--method", name, "--settings", file, "--values", "--output", edits / "foresight")
    assert done.exit_code == 0, done.stderr
    expected = testbed_bench.editor(quick).diagnose(read_requests(edits / "first.jsonl"), values=True)
    rows = [json.loads(line) for line in (edits / "foresight" / "diagnosis.jsonl").read_text().splitlines()]
    assert rows == json.loads(json.dumps(expected.rows()))
    barred = {"memit": [], "blue": [0], "memit+": [0]}[name]
    assert list(expected.protected) == barred
    said = " ".join(done.output.split())
    assert ("protected share of the energy" in said) == bool(barred), "of no null space nothing is protected"


@pytest.mark.parametrize(("name", "why"), [("rsft", "is trained"), ("in-context", "keeps its edits beside the model")])
def test_what_is_edited_at_no_keys_is_refused_by_name(diagnose: Command, name: str, why: str) -> None:
    refused = diagnose("--method", name, "--settings", "testbed")
    assert refused.exit_code == 2
    assert f"--method {name}: corsa diagnose goes by the keys" in refused.stderr
    assert f"{name} {why}: name one of alphaedit, alphaedit+, blue" in refused.stderr


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
