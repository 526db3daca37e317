"""CounterFact, and EasyEdit's own form of it."""

from __future__ import annotations

from corsa_plugins.data.requests import EditRequest, Probe
from tests.support.samples import read


def test_a_record():
    first = read("counterfact").requests[0]
    assert first == EditRequest(
        prompt="Autonomous University of Madrid, which is located in",
        target_new="Sweden",
        target_old="Spain",
        subject="Autonomous University of Madrid",
        paraphrases=(
            "Houston. Autonomous University of Madrid is located in",
            "It rained. Autonomous University of Madrid, located in",
        ),
        neighborhood=(
            Probe(prompt="Biure is located in", answer="Spain"),
            Probe(prompt="Pamplona is located in", answer="Spain"),
        ),
        portability=(
            Probe(prompt="What does one pay with in the country of Autonomous University of Madrid?", answer="Kronor"),
        ),
        case_id=3,
    )


def test_what_is_dropped():
    dropped = read("counterfact").dropped
    assert dropped["attribute_prompts"] == 3
    assert dropped["generation_prompts"] == 1
    assert dropped["requested_rewrite.target_new.id"] == 2


def test_easyedit_s_form_has_the_same_facts():
    published, theirs = read("counterfact").requests[1], read("easyedit").requests[0]
    assert theirs.neighborhood == (Probe(prompt="Jean Renoir is a native speaker of", answer="French"),)
    assert theirs == published.model_copy(update={"neighborhood": theirs.neighborhood, "case_id": 0})


def test_easyedit_s_added_question_is_a_portability_probe():
    added, without = read("counterfact").requests
    assert [probe.answer for probe in added.portability] == ["Kronor"]
    assert without.portability == ()
