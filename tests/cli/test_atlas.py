"""``corsa atlas``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from corsa_plugins.cli.app import main
from corsa_plugins.data.reading import read_requests
from tests.fixtures.atlas import KNOWN


def _run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["atlas", *map(str, arguments)])
    return int(stop.value.code or 0)


def _facts(path: Path) -> Path:
    lines = [
        {
            "relation": fact.relation, "subject": fact.subject, "answer": fact.answer,
            "statements": fact.statements, "questions": fact.questions,
        }
        for fact in KNOWN
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_facts_of_ones_own_become_rounds_of_edits(tmp_path: Path, model: Path, capsys) -> None:
    facts = _facts(tmp_path / "facts.jsonl")
    arguments = ("--model", model, "--facts", facts, "--output", tmp_path / "out", "--least", 3, "--size", 2, "-q")
    assert _run(*arguments, "--n-rounds", 2, "--device", "cpu") == 0
    out = capsys.readouterr().out
    assert "capital" in out
    assert "round_2" in out
    assert len(read_requests(tmp_path / "out" / "round_2.jsonl")) == 2


def test_what_is_wrong_is_one_line(tmp_path: Path, model: Path, capsys) -> None:
    (tmp_path / "facts.jsonl").write_text("{}\n")
    assert _run("--model", model, "--facts", tmp_path / "facts.jsonl", "--output", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "facts.jsonl, line 1: relation: is missing: add it" in error
