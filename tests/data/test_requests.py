"""Edit requests and probes: what is accepted, what is refused, and how clearly."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from corsa_plugins.data.requests import EditRequest, Probe, normalise_whitespace, quoted
from tests.support.records import texts

GOOD = {"prompt": "The capital of France is", "target_new": "Lyon"}


class TestValidation:
    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"prompt": "  "}, "prompt"),
            ({"target_new": "\n"}, "target_new"),
            ({"subject": "Germany"}, "subject"),
            ({"subject": " "}, "subject"),
            ({"target_old": " Lyon "}, "target_old"),
            ({"paraphrases": ["ok", ""]}, "paraphrases"),
            ({"paraphrases": None}, "paraphrases"),
            ({"case_id": True}, "case_id"),
            ({"case_id": 1.5}, "case_id"),
            ({"paraphrases": ["Q  one?"], "validation_prompts": ["Q one?"]}, "validation_prompts"),
            ({"neighborhood": ["Q one?"], "validation_prompts": ["Q one?"]}, "validation_prompts"),
            ({"portability": [{"prompt": "Q one?"}], "validation_prompts": ["Q one?"]}, "validation_prompts"),
        ],
    )
    def test_a_wrong_field_is_named(self, change, field):
        with pytest.raises(ValidationError) as caught:
            EditRequest(**{**GOOD, **change})
        assert {error["loc"][0] for error in caught.value.errors()} == {field}

    def test_an_unfilled_template_is_answered_with_the_filled_one(self):
        with pytest.raises(ValidationError, match=r"write it out: 'The capital of France is'"):
            EditRequest(prompt="The capital of {} is", subject="France", target_new="Lyon")

    def test_braces_without_a_missing_subject_are_just_text(self):
        prompt = "The empty dict in Python is written {}; its length is"
        assert EditRequest(prompt=prompt, subject="dict", target_new="0").prompt == prompt

    def test_requests_are_immutable_and_hashable(self):
        request = EditRequest(**GOOD, paraphrases=["a", "b"], neighborhood=["c"])
        with pytest.raises(ValidationError):
            request.prompt = "other"
        assert request in {EditRequest(**GOOD, paraphrases=["a", "b"], neighborhood=["c"])}


class TestAliases:
    @given(answer=texts, aliases=st.lists(texts, max_size=5))
    def test_aliases_are_other_answers_each_once_in_their_order(self, answer, aliases):
        probe = Probe(prompt="p", answer=answer, aliases=aliases)
        kept = [normalise_whitespace(alias) for alias in probe.aliases]
        assert len({normalise_whitespace(answer), *kept}) == 1 + len(kept)
        given_order = dict.fromkeys(map(normalise_whitespace, aliases))
        assert kept == [alias for alias in given_order if alias != normalise_whitespace(answer)]
        assert Probe.model_validate(probe.model_dump()) == probe

    def test_without_aliases_a_probe_is_written_as_it_always_was(self):
        probe = {"prompt": "Q?", "answer": "A"}
        assert Probe(**probe, aliases=[" A"]).model_dump(mode="json") == probe
        request = EditRequest(**GOOD, neighborhood=[probe, "Only asked"])
        written = json.loads(request.model_dump_json())["neighborhood"]
        assert written == [probe, {"prompt": "Only asked", "answer": None}]


def test_a_message_quotes_the_beginning_of_a_long_prompt_and_no_control_characters():
    request = EditRequest(prompt="\x1b[2J" + "word " * 20_000, target_new="x", case_id="c")
    assert request.name().startswith("case 'c' ('\\x1b[2Jword ")
    assert len(request.name()) < 250
    assert quoted("short") == "'short'"


def test_what_identifies_a_request_is_the_same_without_reversals():
    plain = EditRequest(prompt="The capital of Spain is", target_new="Bangkok")
    assert "reversed" not in plain.model_dump(mode="json")
    turned = EditRequest(**{**dict(plain), "reversed": [{"prompt": "Bangkok is the capital of", "answer": "Spain"}]})
    assert EditRequest.model_validate(turned.model_dump(mode="json")) == turned


def test_a_reversal_is_a_test_prompt():
    with pytest.raises(ValidationError, match="is also in reversed"):
        EditRequest(prompt="p", target_new="a", reversed=["Who has  a?"], validation_prompts=["Who has a?"])
