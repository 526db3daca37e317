"""Descriptions of parts: listed, or in the model's own words."""

from __future__ import annotations

import json

import pytest

from corsa_plugins.bench.routing.descriptions import (
    list_prompts,
    list_subjects,
    read_descriptions,
    summarise,
    write_descriptions,
)
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError
from tests.support.routing import CAPITALS, PEOPLE


def test_a_description_lists_prompts_or_is_the_models_own(taught_llama, tiny_tokenizer):
    assert list_prompts([*CAPITALS, *PEOPLE], 2) == "The capital of France is; The capital of Italy is"
    assert list_prompts([*CAPITALS, *CAPITALS], 9) == "The capital of France is; The capital of Italy is"
    with pytest.raises(SettingError, match="describe nothing"):
        list_prompts([])
    assert summarise(taught_llama, tiny_tokenizer, CAPITALS[:1], template="{prompts}") == "Paris."
    with pytest.raises(SettingError, match=r"no \{prompts\}"):
        summarise(taught_llama, tiny_tokenizer, CAPITALS, template="What is this?")


def test_a_description_lists_subjects():
    request = EditRequest(prompt="The capital of France is", subject="France", target_new="Oslo")
    assert list_subjects([request, request]) == "France"
    with pytest.raises(SettingError, match="has no subject"):
        list_subjects([CAPITALS[0]])


def test_descriptions_are_of_their_adapters_whatever_their_order(tmp_path):
    path = write_descriptions({"b": "Städte", "a": "people"}, tmp_path / "d.json")
    assert list(read_descriptions(path, ["a", "b"]).items()) == [("a", "people"), ("b", "Städte")]
    for names in (["a"], ["a", "b", "c"]):
        with pytest.raises(SettingError, match="a description for each of a"):
            read_descriptions(path, names)
    path.write_text(json.dumps({"a": " "}))
    with pytest.raises(SettingError, match="a description for each of a"):
        read_descriptions(path, ["a"])
    path.write_text("{")
    with pytest.raises(SettingError, match="is not JSON"):
        read_descriptions(path, ["a"])
    with pytest.raises(SettingError, match="no such file"):
        read_descriptions(tmp_path / "none.json", ["a"])
