"""What counts as known: told as a statement at once, and told in chat."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from corsa_plugins.atlas import IgnoranceError, find_known
from corsa_plugins.atlas.answers import Answers, Question, identity_of
from corsa_plugins.atlas.knowledge import CHAT, QUESTION, STATEMENT
from corsa_plugins.journal import OtherWorkError
from tests.fixtures.atlas import BORN, CAPITAL, KNOWN, ONLY_IN_STATEMENTS, UNKNOWN


@pytest.fixture
def answers(tmp_path: Path, knowing, chat_tokenizer):
    with Answers(tmp_path / "asked.jsonl", {"model": "a"}, lambda: (knowing, chat_tokenizer)) as answers:
        yield answers


def test_known_is_what_is_told_as_a_statement_and_in_chat(answers, every_fact) -> None:
    knowledge = find_known(answers, every_fact, chat=True, least=3)
    assert [known.fact for known in knowledge.known] == KNOWN
    assert all({STATEMENT, CHAT, QUESTION} <= set(known.forms) for known in knowledge.known)
    assert knowledge.counts["capital"] | {QUESTION: 0} == knowledge.counts["capital"] | {
        "asked": 8, STATEMENT: 7, CHAT: 6, QUESTION: 0,
    }  # fmt: skip
    assert not knowledge.left_out


def test_without_a_chat_template_the_question_decides(answers, every_fact) -> None:
    knowledge = find_known(answers, every_fact, chat=False, least=3)
    assert set(KNOWN) <= {known.fact for known in knowledge.known}
    assert all(known.forms == (STATEMENT, QUESTION) for known in knowledge.known)


def test_the_answer_is_spelled_as_the_model_spells_it(answers) -> None:
    facts = [replace(fact, answer=f"City of {fact.answer}", aliases=(fact.answer,)) for fact in KNOWN]
    knowledge = find_known(answers, facts, chat=True, least=3)
    assert [known.fact.answer for known in knowledge.known] == [fact.answer for fact in KNOWN]
    assert knowledge.known[0].fact.aliases == (f"City of {KNOWN[0].answer}",)


def test_an_answer_inside_a_word_or_further_on_is_none(answers) -> None:
    facts = [CAPITAL.fact(fact.subject, fact.answer[:-1]) for fact in KNOWN if fact.relation == "capital"]
    facts += [replace(fact, answer=".") for fact in facts]
    with pytest.raises(IgnoranceError, match=r"the model knows too little to edit: capital 0 of 12"):
        find_known(answers, facts, chat=True, least=2)


def test_relations_of_which_little_is_known_are_left_out(answers) -> None:
    few = [fact for fact in KNOWN if fact.relation == "capital"] + [*KNOWN[-2:], UNKNOWN[1]]
    knowledge = find_known(answers, few, chat=True, least=3)
    assert {known.fact.relation for known in knowledge.known} == {"capital"}
    assert knowledge.left_out == ("born",)
    alike = [replace(fact, answer="Berg") for fact in KNOWN if fact.relation == "born" and fact.answer == "Berg"]
    assert find_known(answers, [*few, *alike], chat=True, least=2).left_out == ("born",)  # too few different answers


def test_nothing_is_asked_twice(tmp_path: Path, answers, every_fact) -> None:
    first = find_known(answers, every_fact, chat=True, least=3)
    with Answers(tmp_path / "asked.jsonl", {"model": "a"}, _never) as again:
        assert find_known(again, every_fact, chat=True, least=3) == first
        with pytest.raises(AssertionError, match="loaded"):
            again.ask([Question("The capital of Wales is", False)], 6)
    with pytest.raises(OtherWorkError, match="other model"):
        Answers(tmp_path / "asked.jsonl", {"model": "b"}, _never)


def test_asking_stops_when_enough_is_known(answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corsa_plugins.atlas.knowledge._LEAST_SLICE", 3)
    knowledge = find_known(answers, [*KNOWN, ONLY_IN_STATEMENTS], chat=True, least=3, wanted=6)
    assert knowledge.counts["capital"]["asked"] == knowledge.counts["born"]["asked"] == 3
    assert len(knowledge.known) == 6


def _never():
    raise AssertionError("loaded")


def test_a_model_is_told_from_another_without_loading_it(model: Path, knowing) -> None:
    before = identity_of(model)
    assert before == identity_of(str(model))
    knowing.get_input_embeddings().weight.data.mul_(2)
    knowing.save_pretrained(model)
    assert identity_of(model) != before
    assert identity_of("some/name") == {"model": "some/name"}
    assert BORN.name != CAPITAL.name
