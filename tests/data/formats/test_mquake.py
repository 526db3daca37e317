"""MQuAKE: each rewrite a request, the questions with the last."""

from __future__ import annotations

import json

import pytest

from corsa_plugins.data.formats import read_format
from tests.support.samples import read, records


@pytest.mark.parametrize("name", ["mquake", "mquake-remastered"])
def test_each_rewrite_is_a_request_and_the_last_one_has_the_questions(name):
    sport, country = read(name).requests
    assert (sport.case_id, country.case_id) == ("1561-1", "1561-2")
    assert sport.prompt == "Dudley Town F.C. is associated with the sport of"
    assert (country.target_new, country.target_old) == ("Italy", "England")
    assert country.paraphrases == ("Which country was cricket created in?",)
    assert sport.portability == ()
    assert [probe.answer for probe in country.portability] == ["Rome", "Rome"]
    assert {probe.aliases for probe in country.portability} == {("Roma", "Rome, Italy")}


@pytest.mark.parametrize(
    ("alias", "aliases", "repeated"), [(None, (), 0), ("Roma", ("Roma",), 0), (["Rome", "Roma", ""], ("Roma",), 1)]
)
def test_aliases_however_they_are_given(alias, aliases, repeated, tmp_path):
    case = {**records("mquake.json")[0], "new_answer_alias": alias}
    (tmp_path / "m.json").write_text(json.dumps([case]))
    result = read_format("mquake", tmp_path / "m.json")
    assert {probe.aliases for probe in result.requests[-1].portability} == {aliases}
    assert result.dropped.get("new_answer_alias (repeated answers)", 0) == repeated


def test_flat_and_nested_targets_are_the_same():
    assert read("mquake").requests == read("mquake-remastered").requests


def test_a_wrong_rewrite_spoils_its_case(tmp_path):
    case = records("mquake.json")[0]
    del case["requested_rewrite"][1]["target_new"]["str"]
    (tmp_path / "m.jsonl").write_text(json.dumps(case) + "\n" + json.dumps(records("mquake.json")[0]))
    result = read_format("mquake", tmp_path / "m.jsonl")
    assert len(result.requests) == 2
    (problem,) = result.problems
    assert (problem.index, problem.line) == (0, 1)
    assert "requested_rewrite[1].target_new.str" in problem.reason
