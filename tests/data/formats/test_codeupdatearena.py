"""CodeUpdateArena: one problem of every update is the edit."""

from __future__ import annotations

import json
import math

import pytest

from corsa_plugins.data.formats import FormatError, read_format
from tests.support.samples import SAMPLES, read, records

PROBLEM = ("scenario", "problem", "solution_signature", "unit_tests", "imports", "ref_solution")
LONGER = {
    "description": "update_description", "docstring": "update_docstring", "signature": "new_function_signature",
    "function_path": "api_path", "implementation": "new_impl",
}  # fmt: skip


def nested(record):
    """The record as the benchmark's repository has it."""
    update = {LONGER.get(name, name): value for name, value in record["update"].items()}
    problem = {name: record[name] for name in PROBLEM if name in record}
    ids = {"specific_update_id": record["update_id"], "prog_syn_id": record["prog_syn_id"]}
    return {"update": update, "prog_syn": problem, **ids}


def grouped(flat):
    """A record for every update, as the benchmark's repository has them too."""
    groups = {}
    for record in flat:
        groups.setdefault(record["update_id"], []).append(record)
    names = (*PROBLEM, "prog_syn_id")
    return [
        {
            "update": group[0]["update"],
            "prog_syn_examples": [{k: each[k] for k in names if k in each} for each in group],
        }
        for group in groups.values()
    ]


FORMS = {"flat": list, "nested": lambda flat: [nested(record) for record in flat], "grouped": grouped}


@pytest.mark.parametrize("name", ["codeupdatearena", "codeupdatearena-update"])
@pytest.mark.parametrize(
    ("form", "field"), [("nested", "prog_syn.problem"), ("grouped", "prog_syn_examples[].problem")]
)
def test_every_form_gives_the_same(name, form, field, tmp_path):
    flat = [with_implementation(record) for record in records(SAMPLES[name]) if record.get("update_id")]
    for file in ("flat", form):
        (tmp_path / f"{file}.json").write_text(json.dumps(FORMS[file](flat)))
    result, expected = (read_format(name, tmp_path / f"{file}.json") for file in (form, "flat"))
    assert len(result.requests) == 2
    assert result.requests == expected.requests
    assert len(result.code) == 3
    assert result.code == expected.code
    assert not result.problems
    assert result.mapping[field] == "prompt"
    with pytest.raises(FormatError, match="several formats have these fields"):  # which both are
        read_format(None, tmp_path / f"{form}.json")


def test_the_first_release_has_another_name_for_what_is_imported(tmp_path):
    record = with_implementation(records(SAMPLES["codeupdatearena"])[0])
    (tmp_path / "f.json").write_text(
        json.dumps([record | {"imports": None, "prog_syn_imports": ["import math", "x = 1"]}])
    )
    assert read_format("codeupdatearena", tmp_path / "f.json").code[0].setup == "import math\nx = 1"


def test_what_is_wrong_with_a_group_is_said(tmp_path):
    group = grouped([record for record in records(SAMPLES["codeupdatearena"]) if record.get("update_id")])[0]
    unnamed = {**group, "prog_syn_examples": [{**each, "prog_syn_id": None} for each in group["prog_syn_examples"]]}
    empty = {**group, "prog_syn_examples": []}
    missing = {**group, "prog_syn_examples": [*group["prog_syn_examples"], {"problem": "P"}]}
    (tmp_path / "f.json").write_text(json.dumps([unnamed, empty, missing]))
    result = read_format("codeupdatearena", tmp_path / "f.json")
    assert [problem.reason for problem in result.problems] == [
        "field 'prog_syn_examples' has no problem in it", "field 'ref_solution' is missing; it should be text",
    ]  # fmt: skip
    assert [request.case_id for request in result.requests] == ["[math.hypot]:[add-argument]:[update-0]:0"]


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


HYPOT = "def hypot(*coordinates, scale=1):\n    return old_hypot(*coordinates) * scale"


def with_implementation(record, **changes):
    return {**record, "update": {**record["update"], "implementation": HYPOT, **changes}}


def test_the_outdated_solution_is_that_for_the_old_function(tmp_path):
    flat = [with_implementation(record) for record in records(SAMPLES["codeupdatearena"])]
    (tmp_path / "f.json").write_text(json.dumps(flat))
    first, *_ = read_format("codeupdatearena", tmp_path / "f.json").requests
    assert "scale=0" in first.target_new
    assert first.target_old == first.target_new.replace(", scale=0", "")
    assert read("codeupdatearena").requests[0].target_old is None  # its implementation does not tell


@pytest.mark.parametrize("form", FORMS)
def test_problems_run_the_update_and_a_test_at_a_time(form, tmp_path):
    flat = [with_implementation(record) for record in records(SAMPLES["codeupdatearena"]) if record.get("update_id")]
    (tmp_path / "f.json").write_text(json.dumps(FORMS[form](flat)))
    problem = read_format("codeupdatearena", tmp_path / "f.json").code[0]
    assert len(problem.tests) == 2
    assert problem.entry_point == "distance_0"
    assert "scale" in problem.note
    assert "Update of" not in problem.prompt
    space = {}
    for part in (problem.setup, problem.update, problem.reference):
        exec(part, space)
    try:
        assert math.hypot(3, 4, scale=2) == 10
        with pytest.raises(TypeError):  # the sample's reference is no solution
            exec(problem.tests[0], dict(space))
        exec(problem.tests[1], dict(space))
    finally:
        math.hypot = space["old_hypot"]


def test_a_renamed_function_is_gone_by_its_old_name(tmp_path):
    record = with_implementation(
        records(SAMPLES["codeupdatearena"])[0],
        implementation=HYPOT.replace("def hypot", "def length"),
        update_type="modify-function-name",
    )
    record["ref_solution"] = "import math\n\ndef distance_0(points):\n    return math.length(*points)"
    (tmp_path / "f.json").write_text(json.dumps([record]))
    result = read_format("codeupdatearena", tmp_path / "f.json")
    assert result.code[0].update.endswith("import math\ndel math.hypot\nmath.length = length")
    assert "math.hypot(*points)" in result.requests[0].target_old


@pytest.mark.parametrize("path", ["os.system('x'); a.b", "hypot", "math.hypot\nimport os", 3])
def test_a_path_that_is_no_name_is_no_problem_to_run(path, tmp_path):
    record = with_implementation(records(SAMPLES["codeupdatearena"])[0], function_path=path)
    (tmp_path / "f.json").write_text(json.dumps([record]))
    result = read_format("codeupdatearena", tmp_path / "f.json")
    assert result.code == ()
    assert len(result.requests) == 1
