"""The world and its edit plans: properties every seed must have."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corsa_plugins.testbed import World, WorldConfig
from corsa_plugins.testbed.relations import RELATIONS, STATEMENT

WORLD = World.build(WorldConfig())


def test_equal_configs_give_equal_worlds_and_other_seeds_others() -> None:
    assert World.build(WorldConfig()) == WORLD
    assert World.build(WorldConfig(seed=1)).facts != WORLD.facts


def test_world_survives_json() -> None:
    assert World.from_dict(WORLD.to_dict()) == WORLD


def test_every_subject_has_one_answer_per_relation_from_its_list() -> None:
    assert len({(f.subject, f.relation) for f in WORLD.facts}) == len(WORLD.facts) == 400 * 5
    assert all(f.answer in WORLD.answers(f.relation) for f in WORLD.facts)
    assert all({f.subject for f in WORLD.facts_of[p.name]} == {p.name} for p in WORLD.people)


def test_last_names_are_unique_so_that_the_last_subject_token_can_tell_people_apart() -> None:
    assert len({p.name.split()[-1] for p in WORLD.people}) == len(WORLD.people)


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda r: r.name)
def test_forms_of_a_relation(relation) -> None:
    templates = relation.templates
    assert len(set(templates.values())) == len(templates) >= 1 + 3 + 1
    assert all(t.count("{subject}") == 1 and not t.endswith(" ") for t in templates.values())
    assert relation.statement.startswith("{subject} ")
    assert len(set(relation.answers)) == len(relation.answers) >= 24
    # no answer may be the beginning of another: greedy decoding could not tell which was meant
    assert not any(a != b and b.startswith(a + " ") for a in relation.answers for b in relation.answers)


def test_unknown_names_are_refused_by_name() -> None:
    with pytest.raises(KeyError, match="birthplace"):
        WORLD.relation("spouse")
    with pytest.raises(KeyError, match="question_1"):
        WORLD.prompts(WORLD.facts[0], "question_9")
    with pytest.raises(ValueError, match="n_relations is 9: it must be an integer between 1 and 5"):
        WorldConfig(n_relations=9)
    with pytest.raises(ValueError, match="n_answers is 1000: it must be an integer between 2 and"):
        WorldConfig(n_answers=1000)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_three_rounds_of_a_hundred_leave_five_hundred_facts_alone(seed: int) -> None:
    plan = WORLD.edit_rounds(n_rounds=3, size=100, seed=seed, untouched=500)
    answer = {WORLD.prompts(f): f.answer for f in WORLD.facts}
    edits = [request for requests in plan.rounds for request in requests]
    prompts = {request.prompt for request in edits}
    assert [len(requests) for requests in plan.rounds] == [100, 100, 100]
    assert len(prompts) == 300
    assert len({request.subject for request in edits}) == 300
    assert len(plan.untouched) == 500
    # what is watched is of other people, or another fact of the same people, and is true
    assert {r.subject for r in plan.untouched}.isdisjoint(r.subject for r in edits)
    assert {r.subject for r in plan.same_subject} == {r.subject for r in edits}
    assert prompts.isdisjoint(r.prompt for r in plan.same_subject + plan.untouched)
    assert all(answer[r.prompt] == r.target_new and r.target_old is None for r in plan.same_subject + plan.untouched)
    relation = {WORLD.prompts(f): f.relation for f in WORLD.facts}
    for request in edits:
        assert request.target_old == answer[request.prompt] != request.target_new
        assert request.target_new in WORLD.answers(relation[request.prompt])
        assert len(request.paraphrases) == 3
        assert len(request.validation_prompts) == 2
        assert set(request.validation_prompts).isdisjoint({request.prompt, *request.paraphrases})
        assert request.neighborhood
        for probe in request.neighborhood:
            assert probe.answer == answer[probe.prompt] == request.target_old
            assert probe.prompt not in prompts
            assert relation[probe.prompt] == relation[request.prompt]


def test_the_plan_depends_on_its_seed_alone() -> None:
    assert WORLD.edit_rounds(seed=3) == World.build(WorldConfig()).edit_rounds(seed=3)
    assert WORLD.edit_rounds(seed=3) != WORLD.edit_rounds(seed=4)


def test_when_people_run_short_rounds_share_them_but_not_their_facts() -> None:
    plan = WORLD.edit_rounds(n_rounds=5, size=100, untouched=1000)
    edits = [request for requests in plan.rounds for request in requests]
    assert len({request.prompt for request in edits}) == 500
    assert all(len({request.subject for request in requests}) == 100 for requests in plan.rounds)


def test_a_plan_too_large_for_the_world_is_refused_with_what_it_would_need() -> None:
    with pytest.raises(ValueError, match="need 450 subjects; this world has 400"):
        WORLD.edit_rounds(n_rounds=3, size=350, untouched=500)


def test_statement_is_the_edit_prompt() -> None:
    request = WORLD.edit_rounds().rounds[0][0]
    fact = next(f for f in WORLD.facts if WORLD.prompts(f) == request.prompt)
    assert WORLD.forms(fact.relation)[0] == STATEMENT
    assert request.subject == fact.subject
