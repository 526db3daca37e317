"""Facts of the user's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from corsa_plugins.atlas import FactError, facts_of_file, read_facts
from tests.fixtures.atlas import CAPITAL

PAINTER = {
    "relation": "painter", "subject": "Guernica", "answer": "Picasso", "aliases": ["Pablo Picasso", "Picasso"],
    "statements": ["{} was painted by"], "questions": ["Who painted {}?"],
}  # fmt: skip


def _file(folder: Path, *lines: object) -> Path:
    path = folder / "facts.jsonl"
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def test_forms_are_given_once_for_a_relation(tmp_path: Path) -> None:
    later = {"relation": "painter", "subject": "The Scream", "answer": "Munch"}
    first, second = read_facts(_file(tmp_path, PAINTER, "\n", later))
    assert first.answers == ("Picasso", "Pablo Picasso")
    assert second.written(second.questions[0]) == "Who painted The Scream?"
    assert second.statements == first.statements


def test_known_relations_need_no_forms(tmp_path: Path) -> None:
    line = {"relation": "capital", "subject": "Wales", "answer": "Cardiff"}
    assert read_facts(_file(tmp_path, line), [CAPITAL]) == [CAPITAL.fact("Wales", "Cardiff")]
    assert facts_of_file(_file(tmp_path, line))[0].questions[0].startswith("What is the capital of {}?")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"relation": "a", "subject": "b", "answer": "c"}], r"line 1: the relation 'a' needs forms"),
        ([PAINTER, "{"], r"line 2: not JSON"),
        ([PAINTER | {"anser": "c"}], r"line 1: anser: unknown field; did you mean 'answer'"),
        ([PAINTER | {"answer": " "}], r"line 1: answer: is blank"),
        ([PAINTER | {"questions": ["Who?"]}], r"line 1: write \{\} once in 'Who\?'"),
        ([PAINTER, PAINTER | {"answer": "Goya"}], r"line 2: painter of 'Guernica' is 'Goya' here and 'Picasso' before"),
        (["\n"], r"there are no facts"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, lines: list, message: str) -> None:
    with pytest.raises(FactError, match=message):
        read_facts(_file(tmp_path, *lines))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FactError, match="no such file"):
        read_facts(tmp_path / "facts.jsonl")
