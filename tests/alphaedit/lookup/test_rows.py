"""The rows that a model reads are what evaluation asks."""

from __future__ import annotations

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.alphaedit.lookup.rows import rewriting_rows
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.model.tokenization import join
from tests.support.families import CONTEXTS


def test_the_texts_are_those_that_evaluation_asks(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Also with a space at the prompt's end, braces in it, and a subject that the context has too."""
    request = EditRequest(prompt="def {x} of Rome is ", target_new="New York City", subject="Rome")
    (rows,) = rewriting_rows(tiny_llama, tiny_tokenizer, [request], CONTEXTS, "subject_last")
    for row, context in zip(rows, CONTEXTS, strict=False):
        prompt_ids, target_ids = join(tiny_tokenizer, context.replace("{}", request.prompt), request.target_new)
        assert list(row.ids) == prompt_ids + target_ids[:-1]
        assert list(row.targets) == target_ids
        assert tiny_tokenizer.decode(row.ids[: row.position + 1]).endswith("def {x} of Rome")
    assert rows[-1].targets == ()
    assert tiny_tokenizer.decode(rows[-1].ids, skip_special_tokens=True) == "Rome"
