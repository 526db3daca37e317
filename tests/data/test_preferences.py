"""Requests as preference rows, and old answers from the model itself."""

from __future__ import annotations

import pytest

from corsa_plugins.data.preferences import PreferenceError, fill_target_old, to_preference_rows
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.model.tokenization import join

ROME = EditRequest(prompt="The capital of France is", target_new="Rome", target_old="Paris", case_id=4)


class TestRows:
    @pytest.mark.parametrize("prompt", ["The capital of France is", "The capital of France is ", "Capital:\n"])
    def test_prompt_and_answer_are_split_where_the_tokens_are(self, tiny_tokenizer, prompt):
        (row,) = to_preference_rows([EditRequest(prompt=prompt, target_new="Rome", target_old="Paris")])
        for side, target in (("chosen", "Rome"), ("rejected", "Paris")):
            joined = join(tiny_tokenizer, prompt, target)
            assert tiny_tokenizer(row["prompt"])["input_ids"] == joined.prompt_ids
            assert tiny_tokenizer(row["prompt"] + row[side])["input_ids"] == joined.prompt_ids + joined.target_ids

    def test_plain_rows(self):
        assert to_preference_rows([ROME], answer_suffix=".") == [
            {"prompt": "The capital of France is", "chosen": " Rome.", "rejected": " Paris."}
        ]

    def test_conversational_rows(self):
        assert to_preference_rows([ROME], conversational=True) == [
            {
                "prompt": [{"role": "user", "content": "The capital of France is"}],
                "chosen": [{"role": "assistant", "content": "Rome"}],
                "rejected": [{"role": "assistant", "content": "Paris"}],
            }
        ]

    def test_requests_without_an_old_answer_are_named(self):
        without = EditRequest(prompt="The capital of Italy is", target_new="Oslo", case_id="it-1")
        with pytest.raises(PreferenceError, match=r"no target_old: case 'it-1' \('The capital of Italy is'\)"):
            to_preference_rows([ROME, without])

    def test_many_are_counted(self):
        requests = [EditRequest(prompt=f"Fact {i} is", target_new="x") for i in range(9)]
        with pytest.raises(PreferenceError, match=r"request 0 .* request 4 \('Fact 4 is'\) and 4 more"):
            to_preference_rows(requests)


class TestFilling:
    def test_the_models_own_answer_becomes_the_old_one(self, taught_llama, tiny_tokenizer):
        missing = EditRequest(
            prompt="What does Anna Berg play?", target_new="the piano", paraphrases=["Her instrument?"], case_id=7
        )
        result = fill_target_old(taught_llama, tiny_tokenizer, [missing])
        expected = EditRequest(**{**dict(missing), "target_old": "the violin"})
        assert result.requests == result.filled == (expected,)
        assert result.already_known == ()

    def test_what_the_model_already_says_is_reported_and_left_out(self, taught_llama, tiny_tokenizer):
        known = EditRequest(prompt="The capital of Italy is", target_new="rome")
        missing = EditRequest(prompt="The capital of Spain is", target_new="Oslo")
        result = fill_target_old(taught_llama, tiny_tokenizer, [known, ROME, missing])
        assert result.already_known == (known,)
        assert [request.target_old for request in result.requests] == ["Paris", "Madrid"]
        assert result.requests[0] is ROME
        assert len(result.filled) == 1

    def test_requests_with_an_old_answer_are_not_asked(self, taught_llama, tiny_tokenizer):
        # the model disagrees with both answers; were it asked, one request would change and the other go
        wrong = EditRequest(prompt="The capital of Italy is", target_new="Rome", target_old="Oslo")
        result = fill_target_old(taught_llama, tiny_tokenizer, [ROME, wrong])
        assert (result.requests, result.already_known, result.filled) == ((ROME, wrong), (), ())

    def test_an_empty_answer_names_the_case(self, tiny_llama, tiny_tokenizer):
        tiny_llama.generation_config.eos_token_id = list(range(len(tiny_tokenizer)))  # whatever it says ends it
        missing = EditRequest(prompt="The capital of Spain is", target_new="Oslo", case_id=12)
        with pytest.raises(PreferenceError, match=r"no answer to case 12 .*give target_old"):
            fill_target_old(tiny_llama, tiny_tokenizer, [missing])

    def test_all_of_an_answer_where_it_is_code(self, taught_llama, tiny_tokenizer):
        missing = EditRequest(prompt="The capital of France is", target_new="Oslo")
        answers = {
            whole: fill_target_old(taught_llama, tiny_tokenizer, [missing], whole=whole).requests[0].target_old
            for whole in (True, False)
        }
        assert answers == {True: "Paris.", False: "Paris"}
