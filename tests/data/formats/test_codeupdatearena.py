"""CodeUpdateArena: one problem of every update is the edit."""

from __future__ import annotations

from tests.support.samples import read


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
