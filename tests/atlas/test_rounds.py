"""Edits of what is known: disjoint, by seed, and never of what is watched."""

from __future__ import annotations

from dataclasses import replace

import pytest

from corsa_plugins.atlas import Draw, Relation, plan_rounds
from corsa_plugins.errors import SettingError

CITY = Relation(
    "city",
    ("{} lies in the country of", "{} is in"),
    ("Where is {}?", "In which country is {}?", "Which country has {}?"),
    follows=("continent", "{} is on the continent of"),
)
CONTINENT = Relation("continent", ("{} is on the continent of",), ("Where on earth is {}?", "Whose part is {}?"))
COUNTRIES = {"Peru": "America", "Chile": "America", "Mali": "Africa", "Ghana": "Africa", "Laos": "Asia", "Oman": "Asia"}
FACTS = [CITY.fact(f"Town{number}", list(COUNTRIES)[number % 6], ("the land",)) for number in range(40)]
FACTS += [CONTINENT.fact(country, continent) for country, continent in COUNTRIES.items()]
FACTS += [CONTINENT.fact(f"Town{number}", "Asia") for number in range(20)]


@pytest.fixture(params=range(3))
def plan(request):
    return plan_rounds(FACTS, Draw(rounds=2, size=9, seed=request.param, untouched=15))


def test_no_subject_is_edited_twice_or_watched_as_untouched(plan) -> None:
    edited = [edit.subject for edits in plan.rounds for edit in edits]
    assert [len(edits) for edits in plan.rounds] == [9, 9]
    assert len(set(edited)) == 18
    assert not set(edited) & {watched.subject for watched in plan.untouched}
    assert {watched.subject for watched in plan.same_subject} <= set(edited)
    assert len(plan.untouched) == 15


def test_same_subject_holds_every_other_fact_of_the_edited(plan) -> None:
    edited = {edit.subject: edit.target_old for edits in plan.rounds for edit in edits}
    others = [fact for fact in FACTS if fact.subject in edited]
    assert len(plan.same_subject) == len(others) - 18


def test_an_edit_changes_the_answer_to_another_of_its_relation(plan) -> None:
    answers = {"city": set(COUNTRIES), "continent": set(COUNTRIES.values())}
    true = {fact.written(fact.statements[0]): fact for fact in FACTS}
    for edits in plan.rounds:
        for edit in edits:
            fact = true[edit.prompt]
            assert edit.target_old == fact.answer != edit.target_new
            assert edit.target_new in answers[fact.relation]


def test_other_wordings_are_never_the_prompt_and_validation_is_apart(plan) -> None:
    for edits in plan.rounds:
        for edit in edits:
            assert edit.paraphrases
            assert len(edit.validation_prompts) == 1
            assert len({edit.prompt, *edit.paraphrases, *edit.validation_prompts}) == 2 + len(edit.paraphrases)


def test_neighbours_are_true_of_subjects_that_no_round_edits(plan) -> None:
    edited = {edit.subject for edits in plan.rounds for edit in edits}
    true = {fact.written(fact.statements[0]): fact for fact in FACTS}
    for edits in plan.rounds:
        for edit in edits:
            assert len(edit.neighborhood) == 10
            for probe in edit.neighborhood:
                assert true[probe.prompt].subject not in edited
                assert true[probe.prompt].relation == true[edit.prompt].relation
                assert (probe.answer, probe.aliases) == (true[probe.prompt].answer, true[probe.prompt].aliases)
            alike = [probe.answer == edit.target_old for probe in edit.neighborhood]
            assert alike == sorted(alike, reverse=True)  # those with the same old answer first


def test_what_follows_from_the_new_answer_is_asked(plan) -> None:
    probes = [(edit, probe) for edits in plan.rounds for edit in edits for probe in edit.portability]
    assert probes
    for edit, probe in probes:
        assert probe.prompt == f"{edit.subject} is on the continent of"
        assert probe.answer == COUNTRIES[edit.target_new] != COUNTRIES[edit.target_old]


def test_the_seed_decides(plan) -> None:
    first, again, other = (plan_rounds(FACTS, Draw(2, 9, seed, 15)) for seed in (5, 5, 6))
    assert first == again
    assert {edit.prompt for edit in first.rounds[0]} != {edit.prompt for edit in other.rounds[0]}


def test_prompts_may_be_the_questions() -> None:
    draw = Draw(2, 9, 5, 15)
    first, second = plan_rounds(FACTS, draw), plan_rounds(FACTS, replace(draw, question=True))
    for statement, question in zip(first.rounds[0], second.rounds[0], strict=True):
        assert (question.prompt, statement.prompt) == (statement.paraphrases[0], question.paraphrases[0])
        assert {question.prompt, *question.paraphrases} == {statement.prompt, *statement.paraphrases}
        assert question.validation_prompts == statement.validation_prompts
        assert question.target_new == statement.target_new
        assert all(probe.prompt.endswith("?") for probe in question.neighborhood)
    assert all(watched.prompt.endswith("?") for watched in second.untouched)


def test_too_few_facts() -> None:
    with pytest.raises(SettingError, match=r"3 rounds of 20 edits need 60 facts .* of the 66 that are known, \d+ can"):
        plan_rounds(FACTS, Draw(3, 20))
    most = plan_rounds(FACTS, Draw(1, 25))
    assert sum("lies in" in edit.prompt for edit in most.rounds[0]) <= 20


def test_the_subject_is_asked_for_by_the_new_answer_where_its_relation_can_be_turned_round() -> None:
    symbol = Relation(
        "symbol", ("The symbol of {} is",), ("What is it for {}?", "And for {}?"), reversal="{} stands for"
    )
    facts = [symbol.fact(f"metal{number}", f"M{number}") for number in range(8)]
    (edits,) = plan_rounds([*facts, *FACTS], Draw(rounds=1, size=12, untouched=2)).rounds
    turned = [edit for edit in edits if edit.reversed]
    assert {edit.subject for edit in turned} == {edit.subject for edit in edits if edit.prompt.startswith("The symbol")}
    for edit in turned:
        assert [(p.prompt, p.answer) for p in edit.reversed] == [(f"{edit.target_new} stands for", edit.subject)]
