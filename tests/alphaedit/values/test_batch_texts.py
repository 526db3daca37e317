"""Batches of requests as tensors: every token of a target is looked for where the model predicts it."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.alphaedit.lookup.rows import rewriting_rows
from corsa_plugins.alphaedit.values.batch_texts import BatchTexts
from tests.support.families import CONTEXTS, REQUESTS


@pytest.mark.parametrize("shifted", [False, True])
def test_tokens_are_wanted_where_they_are_predicted(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, shifted: bool
) -> None:
    requests = rewriting_rows(tiny_llama, tiny_tokenizer, REQUESTS, CONTEXTS, "subject_last")
    texts = BatchTexts.arrange(requests, shifted=shifted)
    assert [len(rows) for rows in requests] == [len(CONTEXTS) + 1] * len(REQUESTS)
    assert torch.bincount(texts.owners).tolist() == [len(CONTEXTS) + 1] * len(REQUESTS)
    rows, positions = (index[: len(texts.tokens)] for index in texts.wanted)
    for number, row in enumerate(texts.rows):
        ids = texts.ids[number][texts.mask[number].bool()].tolist()
        start = row.position if shifted else 0
        assert ids == list(row.ids[start:])
        assert ids[texts.positions[number]] == row.ids[row.position]
        of_row = rows == number
        assert texts.tokens[of_row].tolist() == list(row.targets)
        # the last token of a target is predicted, and not read
        assert texts.ids[number][positions[of_row][1:]].tolist() == list(row.targets[:-1])
    kl = [number for number, row in enumerate(texts.rows) if not row.targets]
    assert texts.wanted[0][len(texts.tokens) :].tolist() == kl
    assert texts.wanted[1][len(texts.tokens) :].tolist() == [int(texts.positions[number]) for number in kl]


def test_every_request_is_a_mean_of_means(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    requests = rewriting_rows(tiny_llama, tiny_tokenizer, REQUESTS, CONTEXTS, "subject_last")
    texts = BatchTexts.arrange(requests, shifted=False)
    totals = torch.zeros(len(REQUESTS), dtype=torch.float64).index_add(0, texts.token_owners, texts.weights)
    assert totals.tolist() == pytest.approx([1] * len(REQUESTS))
    for index, request in enumerate(requests):
        own = texts.weights[(texts.token_owners == index) & texts.in_bare]
        assert own.tolist() == pytest.approx([1 / len(CONTEXTS) / len(request[0].targets)] * len(request[0].targets))
