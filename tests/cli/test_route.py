"""``corsa route``, with adapters that differ."""

from __future__ import annotations

from pathlib import Path

from tests.support.adapters import PARTS
from tests.support.command import Command


def test_questions_are_answered_by_the_adapter_that_is_chosen(
    adapters_folder: Path, corsa_with_adapters: Command
) -> None:
    questions = ("The capital of France is", "Anna Berg was born in")
    done = corsa_with_adapters("route", "--router", "nearest", *questions)
    assert done.exit_code == 0
    lines = [line for line in done.output.splitlines() if any(question in line for question in questions)]
    first, second = sorted(lines, key=lambda line: questions[1] in line)
    assert "capitals" in first
    assert "Paris" in first  # the adapter that changes nothing
    assert "people" in second
    assert "Oslo" not in second  # the one that spoils everything
    (adapters_folder / "d.json").write_text('{"capitals": "France", "people": "Anna"}')
    for name in PARTS:
        (adapters_folder / name / "requests.jsonl").unlink()
    assert corsa_with_adapters("route", "--descriptions", "DIR/d.json", *questions).exit_code == 0


def test_a_blank_question_is_wrong_usage(corsa_with_adapters: Command) -> None:
    refused = corsa_with_adapters("route", "--router", "nearest", " ")
    assert (refused.exit_code, refused.stderr) == (2, "error: a question is blank: ask something\n")
