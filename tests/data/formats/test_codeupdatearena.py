"""CodeUpdateArena: one problem of every update is the edit."""

from __future__ import annotations

import json

import pytest

from corsa_plugins.data.formats import read_format
from tests.support.samples import SAMPLES, read, records

PROBLEM = ("scenario", "problem", "solution_signature", "unit_tests", "imports", "ref_solution")
LONGER = {
    "description": "update_description", "docstring": "update_docstring", "signature": "new_function_signature",
    "function_path": "api_path",
}  # fmt: skip


def nested(record):
    """The record as the benchmark's repository has it."""
    update = {LONGER.get(name, name): value for name, value in record["update"].items()}
    problem = {name: record[name] for name in PROBLEM if name in record}
    ids = {"specific_update_id": record["update_id"], "prog_syn_id": record["prog_syn_id"]}
    return {"update": update, "prog_syn": problem, **ids}


@pytest.mark.parametrize("name", ["codeupdatearena", "codeupdatearena-update"])
def test_the_nested_form_gives_the_same_requests(name, tmp_path):
    flat = [record for record in records(SAMPLES[name]) if record.get("update_id")]
    for file, content in (("flat", flat), ("nested", [nested(record) for record in flat])):
        (tmp_path / f"{file}.json").write_text(json.dumps(content))
    result = read_format(name, tmp_path / "nested.json")
    assert result.requests == read_format(name, tmp_path / "flat.json").requests
    assert not result.problems
    assert result.mapping["prog_syn.problem"] == "prompt"


def test_one_problem_of_every_update_is_the_edit():
    first, second = read("codeupdatearena").requests
    assert first.case_id == "[math.hypot]:[add-argument]:[update-0]:[prog_syn-0]"
    assert first.target_new.startswith("import math\n\ndef distance_0")
    (other,) = first.portability
    assert "variant 3" in other.prompt
    assert other.answer.endswith("scale=3)")
    assert second.portability == ()


def test_the_prompt_shows_one_test_and_no_update():
    result = read("codeupdatearena")
    prompt = result.requests[0].prompt
    assert "assert distance_0" in prompt
    assert "test_hidden" not in prompt
    assert "A second test" not in prompt
    assert prompt.endswith("== 5\nSolution:")
    assert "An argument" not in prompt
    assert result.dropped["unit_tests (beyond the first)"] == 3


def test_the_note_is_in_the_edit_prompt_only():
    alone, noted = read("codeupdatearena").requests[0], read("codeupdatearena-update").requests[0]
    assert "An argument `scale` is added." in noted.prompt
    assert noted.prompt.endswith(alone.prompt)
    assert noted.paraphrases == (alone.prompt,)
    assert noted.portability == alone.portability
