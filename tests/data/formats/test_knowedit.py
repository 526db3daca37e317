"""KnowEdit: answers however deep, and questions that exclude one."""

from __future__ import annotations

import json

from corsa_plugins.data.formats import read_format
from corsa_plugins.data.requests import Probe
from tests.support.samples import read, records


def test_answers_however_deep():
    recent, counterfact, zsre, _ = read("knowedit").requests
    assert recent.target_old is None
    assert [probe.answer for probe in recent.portability] == ["no", "Europe", "Berlin"]
    assert recent.neighborhood == (
        Probe(prompt="The name of the father of Leo Arons is", answer="Albert Arons"),
        Probe(prompt="The place of death of Leo Arons, which is not Berlin, is", answer="Potsdam"),
    )
    assert [probe.aliases for probe in recent.portability] == [
        ("incorrect",),
        ("European continent", "Old Continent"),
        ("Berlin, Germany",),
    ]
    assert counterfact.target_old == "mayor of Vienna"
    assert [probe.answer for probe in counterfact.neighborhood] == ["male", "mayor of Vienna"]
    assert zsre.target_old == "Aspidoceratidae"
    assert zsre.paraphrases == ("What family are Epaspidoceras?",)


def test_an_edit_to_what_is_true_has_no_outdated_answer():
    result = read("knowedit")
    assert (result.requests[3].target_new, result.requests[3].target_old) == ("Crater", None)
    assert result.dropped["ground_truth (the same as the target)"] == 1


def test_dropped_answers_are_counted():
    dropped = read("knowedit").dropped
    assert dropped["portability (no prompt or no answer)"] == 1
    assert dropped["locality (answers that the question excludes)"] == 2
    assert dropped["locality (no answer but the excluded one)"] == 1


def test_every_name_that_a_question_leaves_is_asked_for_or_counted(tmp_path):
    groups = [["Berlin", "Berlin, Germany"], ["Potsdam", "Potsdam", "Bornstedt"], "Bornim"]
    record = records("knowedit.json")[0]
    record["locality"] = {"Forgetfulness": [{**record["locality"]["Forgetfulness"][0], "ground_truth": groups}]}
    (tmp_path / "k.json").write_text(json.dumps([record]))
    result = read_format("knowedit", tmp_path / "k.json")
    (probe,) = result.requests[0].neighborhood
    assert (probe.answer, probe.aliases) == ("Potsdam", ("Bornstedt", "Bornim"))
    assert result.dropped["locality (answers that the question excludes)"] == 2
    assert result.dropped["locality (repeated answers)"] == 1


def test_a_biography():
    (request,) = read("knowedit", "wikibio.json").requests
    assert request.subject == "john russell reynolds"
    assert request.target_new == "He received general education from his father."
    assert request.neighborhood[0].answer == "medicine"
