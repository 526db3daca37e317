"""Prompts about other subjects: of the model's own listing, by seed, and never about what is edited."""

from __future__ import annotations

import random

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from corsa_plugins.errors import SettingError
from corsa_plugins.model.likeness import like_prompts, list_others, template_of
from tests.conftest import llama

COLOURS = ("red", "blue", "green", "white", "black", "grey", "pink")
TOWNS = ("Rome", "Oslo", "Bern", "Bonn", "Riga", "Minsk", "Kyiv")


@pytest.fixture(scope="module")
def lister():
    """A model that has learned that colours are listed with colours and towns with towns, and its tokenizer."""
    words = ["<pad>", "<unk>", ",", "The", "of", "is", *COLOURS, *TOWNS]
    inner = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>")
    model = llama(len(words))
    draw = random.Random(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        texts = [", ".join(draw.choices(kind, k=12)) for kind in (COLOURS, TOWNS) for _ in range(4)]
        ids = torch.tensor(tokenizer(texts)["input_ids"])
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), tokenizer


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
