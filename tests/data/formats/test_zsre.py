"""ZsRE in its two forms, and AlphaSet, which has its fields."""

from __future__ import annotations

import json

import pytest

from corsa_plugins.data.formats import read_format
from corsa_plugins.data.requests import Probe
from tests.support.samples import read, records


def test_the_target_is_the_alternative_or_the_true_answer():
    alternative, answer = read("zsre").requests[1], read("zsre-answers").requests[1]
    assert (alternative.target_new, alternative.target_old) == ("Lamiinae", "Lecanorales")
    assert (answer.target_new, answer.target_old) == ("Lecanorales", None)
    assert read("zsre").dropped["answers (beyond the first)"] == 1


def test_the_unrelated_question_gets_one_question_mark():
    assert read("zsre").requests[0].neighborhood == (
        Probe(prompt="nq question: who played desmond doss father in hacksaw ridge?", answer="Hugo Weaving"),
    )
    assert read("alphaset").requests[0].neighborhood[0].prompt.endswith("Ramen Stadium?")


def test_a_true_alternative_has_no_outdated_answer():
    request = read("zsre").requests[2]
    assert (request.target_new, request.target_old) == ("Liffey", None)
    assert read("zsre").dropped["answers (the same as the target)"] == 1


@pytest.mark.parametrize("name", ["zsre", "zsre-answers"])
def test_easyedit_s_added_question_is_a_portability_probe(name):
    _, without, added = read(name).requests
    assert without.portability == ()
    (probe,) = added.portability
    assert (probe.prompt.split()[0], probe.answer) == ("Into", "Dublin Bay")


def test_the_json_lines_form():
    (request,) = read("zsre-kilt").requests
    assert (request.target_new, request.target_old, request.case_id) == ("Thames", "Severn", "a1")
    assert request.paraphrases == ("What river is crossed by the Iron Bridge?",)


def test_an_empty_alternative_is_malformed(tmp_path):
    bad = {**records("zsre.json")[0], "alt": ""}
    (tmp_path / "z.json").write_text(json.dumps([bad, records("zsre.json")[1]]))
    result = read_format("zsre", tmp_path / "z.json")
    assert [problem.index for problem in result.problems] == [0]
    assert "'alt' is blank" in result.problems[0].reason


def test_a_subject_is_spelled_as_in_the_question_or_left_out():
    result = read("alphaset")
    assert [request.subject for request in result.requests] == ["Parken Stadium", "karlite", None]
    assert result.dropped["subject (not named in the prompt)"] == 1
