"""Prompts about other subjects: of the model's own listing, by seed, and never about what is edited."""

from __future__ import annotations

import pytest
import torch

from corsa_plugins.errors import SettingError
from corsa_plugins.model.likeness import like_prompts, list_others, template_of
from tests.fixtures.likeness import COLOURS, TOWNS


def test_a_template_is_the_prompt_without_its_last_subject() -> None:
    assert template_of("Rome: the land of Rome is", "Rome") == "Rome: the land of {} is"
    assert template_of("The land of Oslo is", "Rome") is None
    assert template_of("The {} of Rome is", "Rome") is None


def test_others_are_of_the_kind_and_none_that_is_given(lister) -> None:
    groups = {"colour": COLOURS[:2], "town": TOWNS[:3]}
    others = list_others(*lister, groups, 3, avoid=["BONN"])
    assert set(others["colour"]) <= set(COLOURS[2:])
    assert set(others["town"]) <= set(TOWNS[3:]) - {"Bonn"}
    assert len(others["colour"]) == len(others["town"]) == 3
    assert others == list_others(*lister, groups, 3, avoid=["BONN"])
    assert others != list_others(*lister, groups, 3, avoid=["BONN"], seed=1)


def test_prompts_have_the_words_of_the_given_ones(lister) -> None:
    given = [("The land of Rome is", "Rome"), ("The land of Oslo is", "Oslo"), ("The red is", "red"), ("of", "blue")]
    like = like_prompts(*lister, given, 2)
    assert len(like) == 4
    for prompt, subject in like[:2]:
        assert prompt == f"The land of {subject} is"
        assert subject in TOWNS[2:]
    for prompt, subject in like[2:]:
        assert prompt == f"The {subject} is"
        assert subject in COLOURS[1:]


def test_nothing_to_list_gives_nothing(lister) -> None:
    assert like_prompts(*lister, [("of", "red")]) == []
    assert list_others(*lister, {"none": ()}) == {"none": []}
    with pytest.raises(SettingError, match="n is 0"):
        list_others(*lister, {}, 0)


def test_the_model_and_the_generators_are_left_as_they_were(lister) -> None:
    model, tokenizer = lister
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model.train()
    list_others(model, tokenizer, {"town": TOWNS[:2]}, 2)
    assert model.training
    model.eval()
    assert torch.equal(torch.rand(3), expected)
