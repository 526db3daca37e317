"""``corsa evaluate-code``: what a small model writes, run."""

from __future__ import annotations

import json
import re

import pytest

from corsa_plugins.data.code_problems import write_problems
from tests.support.code import INC, UPDATES


@pytest.fixture
def home(code_writer, tmp_path):
    for part in code_writer:
        part.save_pretrained(tmp_path / "model")
    write_problems(tmp_path / "problems.jsonl", UPDATES)
    (tmp_path / "humaneval.jsonl").write_text(json.dumps({**INC.model_dump(), "plus_input": []}) + "\n")
    return tmp_path


def test_a_model_that_was_taught_what_to_write(home, corsa, sandbox):
    options = ["--problems", home / "problems.jsonl", "--humaneval", home / "humaneval.jsonl", "--at-once", 1]
    asked = ["--model", home / "model", *options, "--samples", 2, "--top-p", 0.01, "--max-new-tokens", 70]
    done = corsa("evaluate-code", *asked, "-o", home / "out", "-q", "--trained", "--memory", 1)
    assert done.exit_code == 0, done.stderr
    assert "UPass (trained on)" in done.output
    written = json.loads((home / "out" / "code.json").read_text())
    assert all(written["inputs"][name] for name in ("model", "tokenizer", "problems"))
    assert "torch" in written["versions"]
    assert {"seed", "samples"} <= set(written["sampling"])
    figures = written["figures"]
    assert figures["UPass"]["pass@k"]["2"]["mean"] == 0.5
    assert figures["SPass"]["pass@k"]["1"]["mean"] == 1.0
    done = corsa("evaluate-code", *options, "--reference", "--first", 1, "-q")
    assert done.exit_code == 0, done.stderr
    assert "100.0" in done.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--problems", "HOME/problems.jsonl"], "--model and --output, or --reference"),
        (["--reference"], "no problems"),
        (
            ["--reference", "--problems", "HOME/problems.jsonl", "--unenforced", "netwrk"],
            "'netwrk'.*network, files",
        ),
        (
            ["--model", "m", "-o", "HOME/out", "--pass-at", "6", "--problems", "HOME/problems.jsonl"],
            "--pass-at is 6",
        ),
        (
            ["--reference", "--problems", "HOME/humaneval.jsonl"],
            "field 'test': unknown field; did you mean 'tests'",
        ),
    ],
)
def test_wrong_usage_is_told_before_a_model_is_loaded(options, message, home, corsa):
    done = corsa("evaluate-code", *(str(option).replace("HOME", str(home)) for option in options))
    assert done.exit_code == 2
    assert re.search(message, done.stderr, re.DOTALL), done.stderr
