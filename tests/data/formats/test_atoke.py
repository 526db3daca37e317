"""AToKe: the steps of a history, told apart by years."""

from __future__ import annotations

import json

import pytest

from corsa_plugins.data.formats import FormatError, detect_format, read_format
from tests.support.samples import read, records


def test_steps_follow_each_other():
    first, second = read("atoke-me").requests
    assert (first.case_id, second.case_id) == ("3-1", "3-2")
    assert first.prompt == second.prompt
    assert first.target_new == second.target_old == "Southampton F.C."


def test_years_decide_what_a_question_tests():
    _, second = read("atoke-me").requests
    assert second.paraphrases == ("Which club does Billy Wrigglesworth play for?", "Billy Wrigglesworth plays for")
    assert {probe.answer for probe in second.neighborhood} == {"Southampton F.C."}
    assert all("1947 to 1948" in probe.prompt for probe in second.neighborhood)
    answers = {probe.prompt: probe.answer for probe in second.portability}
    assert answers["From 1948 to 1953, Billy Wrigglesworth is a player of"] == "Arsenal F.C."
    assert answers["Billy Wrigglesworth used to play for"] == "Southampton F.C."


def test_each_answer_has_its_own_aliases():
    aliases = {
        "Manchester United F.C.": ("Manchester Red Devils",),
        "Southampton F.C.": ("Soton FC",),
        "Arsenal F.C.": ("Arsenal football club",),
    }
    probes = [p for r in read("atoke-me").requests for p in (*r.portability, *r.neighborhood)]
    assert {probe.answer for probe in probes} == set(aliases)
    assert all(probe.aliases == aliases[probe.answer] for probe in probes)


@pytest.mark.parametrize("value", [["Soton FC", "Arsenal football club"], [["Soton FC", "Arsenal"]]])
def test_aliases_that_no_step_can_be_told_of_are_dropped(value, tmp_path):
    case = {**records("atoke_me.json")[0], "new_answer_alias": value}
    (tmp_path / "a.json").write_text(json.dumps([case]))
    result = read_format("atoke-me", tmp_path / "a.json")
    assert result.dropped["new_answer_alias (not one list for each rewrite)"] == 2
    assert {probe.aliases for probe in result.requests[1].portability} == {(), ("Soton FC",)}


def test_a_single_edit_outside_a_list(tmp_path):
    case = records("atoke_me.json")[0]
    single = {**case, "requested_rewrite": case["requested_rewrite"][0]}
    single["history_evaluation"] = case["history_evaluation"][0]
    single |= {"answer_alias": case["answer_alias"][0], "new_answer_alias": case["new_answer_alias"][:1]}
    (tmp_path / "se.json").write_text(json.dumps([single]))
    assert detect_format(tmp_path / "se.json") == "atoke-me"
    assert read_format(None, tmp_path / "se.json").requests == read("atoke-me").requests[:1]


def test_an_extended_period_is_nothing_to_edit(tmp_path):
    case = records("atoke_me.json")[0]
    case["requested_rewrite"][0]["target_new"] = case["requested_rewrite"][0]["target_true"]
    (tmp_path / "ee.json").write_text(json.dumps([case]))
    with pytest.raises(FormatError, match="nothing to edit"):
        read_format("atoke-me", tmp_path / "ee.json")


def test_a_history_without_its_steps_is_dropped(tmp_path):
    case = records("atoke_me.json")[0]
    case["history_evaluation"] *= 2
    (tmp_path / "h.json").write_text(json.dumps([case]))
    result = read_format("atoke-me", tmp_path / "h.json")
    assert result.dropped["history_evaluation (not one for each rewrite)"] == 4
    assert not any(request.neighborhood for request in result.requests)
