"""The rows that a model reads are what evaluation asks."""

from __future__ import annotations

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.alphaedit.lookup.rows import prompt_rows, rewriting_rows
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.model.tokenization import join
from tests.conftest import CHAT_TEMPLATE
from tests.support.families import CONTEXTS


@pytest.mark.parametrize("chat_template", [False, True])
def test_the_texts_are_those_that_evaluation_asks(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, chat_template: bool
) -> None:
    """Also with a space at the prompt's end, braces in it, and a subject that the context has too."""
    request = EditRequest(prompt="def {x} of Rome is ", target_new="New York City", subject="Rome")
    tiny_tokenizer.chat_template = CHAT_TEMPLATE
    (rows,) = rewriting_rows(tiny_llama, tiny_tokenizer, [request], CONTEXTS, "subject_last", chat_template)
    (bare,) = prompt_rows(tiny_llama, tiny_tokenizer, [request], CONTEXTS, "subject_last", chat_template)
    assert [row.position for row in bare] == [row.position for row in rows[:-1]]
    for row, context in zip(rows, CONTEXTS, strict=False):
        prompt = context.replace("{}", request.prompt)
        prompt_ids, target_ids = join(tiny_tokenizer, prompt, request.target_new, chat_template)
        assert list(row.ids) == prompt_ids + target_ids[:-1]
        assert list(row.targets) == target_ids
        assert tiny_tokenizer.decode(row.ids[: row.position + 1]).endswith("def {x} of Rome")
    assert rows[-1].targets == ()
    assert tiny_tokenizer.decode(rows[-1].ids, skip_special_tokens=True).endswith("Rome")
    assert [len(rows[-1].ids) - 1] == [rows[-1].position]
