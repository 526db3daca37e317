"""RippleEdits: an edit's sentence, its tests and their aliases."""

from __future__ import annotations

import json

import pytest

from corsa_plugins.data.formats import FormatError, read_format
from tests.support.samples import read, records


def test_a_record():
    citizenship, bowl, film = read("rippleedits").requests
    assert citizenship.prompt == "The name of the country of citizenship of Leonardo DiCaprio is"
    assert (citizenship.target_new, citizenship.target_old) == ("Syria", "United States of America")
    assert citizenship.subject == "Leonardo DiCaprio"
    assert [probe.answer for probe in citizenship.portability] == ["Arabic", "Syria", "Damascus", "Arabic"]
    assert [probe.answer for probe in citizenship.neighborhood] == ["Irmelin DiCaprio", "United States of America"]
    assert (bowl.subject, bowl.target_new, bowl.target_old) == ("Super Bowl LV", "Super Bowl LVI", None)
    assert (film.subject, film.target_new) == ("This is Dune", "Ada Brook")


def test_further_answers_and_other_names_are_aliases():
    citizenship = read("rippleedits").requests[0]
    assert [probe.aliases for probe in citizenship.portability] == [
        ("Arabic language",),
        ("Syrian Arab Republic",),
        ("Sham", "Sham city"),
        ("Arabic language",),
    ]
    assert [probe.aliases for probe in citizenship.neighborhood] == [("Irmelin Indenbirken",), ("USA",)]


def test_a_letter_alone_is_no_alias(tmp_path):
    record = records("rippleedits.json")[0]
    (answer,) = record["Relation_Specificity"][0]["test_queries"][0]["answers"]
    answer["aliases"] = ["I", "7", "Irmelin"]
    (tmp_path / "r.json").write_text(json.dumps([record]))
    result = read_format("rippleedits", tmp_path / "r.json")
    assert result.requests[0].neighborhood[0].aliases == ("7", "Irmelin")
    assert result.dropped["Relation_Specificity[].test_queries[].answers[].aliases (a letter alone)"] == 1


@pytest.mark.parametrize("change", [{"subject_id": "Q9"}, {"phrase": "Who?"}, {"relation": "NONE"}])
def test_only_a_plain_query_about_the_subject_names_it(change, tmp_path):
    film = records("rippleedits.json")[2]
    film["Relation_Specificity"][0]["test_queries"][0] |= change
    (tmp_path / "r.json").write_text(json.dumps([film]))
    with pytest.raises(FormatError, match="more than once"):
        read_format("rippleedits", tmp_path / "r.json")


def test_one_of_alternatives_is_asked_and_the_others_counted():
    dropped = read("rippleedits").dropped
    assert dropped["Logical_Generalization[].test_queries (alternatives)"] == 1
    assert dropped["Forgetfulness[].test_queries (answers that the question excludes)"] == 2


def test_a_question_is_not_answered_by_what_it_excludes(tmp_path):
    record = records("rippleedits.json")[0]
    answers = record["Forgetfulness"][0]["test_queries"][0]["answers"]
    assert answers[0] == {"value": "Syrian Arab Republic", "aliases": ["Syria"]}
    assert read("rippleedits").requests[0].neighborhood[-1].answer == answers[1]["value"]
    del answers[1]
    (tmp_path / "r.json").write_text(json.dumps([record]))
    result = read_format("rippleedits", tmp_path / "r.json")
    assert len(result.requests[0].neighborhood) == 1
    assert result.dropped["Forgetfulness[].test_queries (no answer but the excluded one)"] == 1


def test_the_readme_s_spelling(tmp_path):
    record = records("rippleedits.json")[0]
    record["Relation_Specifity"] = record.pop("Relation_Specificity")
    (tmp_path / "r.json").write_text(json.dumps([record]))
    assert read_format("rippleedits", tmp_path / "r.json").requests == read("rippleedits").requests[:1]


def test_an_edit_to_the_same_answer_is_malformed(tmp_path):
    record = records("rippleedits.json")[0]
    record["edit"]["original_fact"]["prompt"] = record["edit"]["prompt"]
    (tmp_path / "r.json").write_text(json.dumps([record, *records("rippleedits.json")]))
    (problem,) = read_format("rippleedits", tmp_path / "r.json").problems
    assert "nothing to edit" in problem.reason


def test_an_unknown_former_answer_is_no_target_old(tmp_path):
    record = records("rippleedits.json")[0]
    record["edit"]["original_fact"]["prompt"] = "The name of the country of citizenship of Leonardo DiCaprio is ."
    (tmp_path / "r.json").write_text(json.dumps([record]))
    (request,) = read_format("rippleedits", tmp_path / "r.json").requests
    assert (request.target_new, request.target_old) == ("Syria", None)
