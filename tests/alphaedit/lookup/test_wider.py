"""Further keys: the subject with nothing before it, and the prompt about subjects that are not edited."""

from __future__ import annotations

from corsa_plugins.alphaedit.lookup.wider import NeighbourSettings, of_neighbours, of_subjects
from corsa_plugins.data.requests import EditRequest
from tests.fixtures.likeness import TOWNS

REQUESTS = (
    EditRequest(prompt="The land of Rome is", target_new="red", subject="Rome"),
    EditRequest(prompt="The land of Oslo is", target_new="blue", subject="Oslo"),
)


def test_a_subject_stands_alone_with_something_behind_it() -> None:
    assert [(each.prompt, each.subject) for each in of_subjects(REQUESTS)] == [("Rome is", "Rome"), ("Oslo is", "Oslo")]


def test_neighbours_are_none_of_the_subjects_edited_now_or_earlier(lister) -> None:
    found = of_neighbours(*lister, REQUESTS, NeighbourSettings(per_form=3), avoid=["Bern"])
    assert len(found) == 3
    for each in found:
        assert each.prompt == f"The land of {each.subject} is"
        assert each.subject in set(TOWNS) - {"Rome", "Oslo", "Bern"}
    assert found == of_neighbours(*lister, REQUESTS, NeighbourSettings(per_form=3), avoid=["Bern"])
    drawn = {of_neighbours(*lister, REQUESTS, NeighbourSettings(per_form=3, seed=seed)) for seed in range(4)}
    assert len(drawn) > 1
