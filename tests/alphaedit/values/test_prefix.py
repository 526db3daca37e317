"""Going on from what was read before the edited token is reading it all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from corsa_plugins.alphaedit.lookup.rows import rewriting_rows
from corsa_plugins.alphaedit.values.search import find_values
from corsa_plugins.data.requests import EditRequest
from tests.support.families import CONTEXTS, REQUESTS, family
from tests.support.values import CLAMPED


def test_a_subject_at_the_very_start_without_bos(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """Nothing is before it in the bare prompt, and something is in the contexts; with one context, in none."""
    tiny_tokenizer.backend_tokenizer.post_processor = None
    model = family("gpt2", len(tiny_tokenizer)).double()
    requests = [EditRequest(prompt="a was born in", target_new="Oslo", subject="a")]
    for contexts in (CONTEXTS, ("{}",)):
        fast = find_values(model, tiny_tokenizer, requests, 1, contexts, CLAMPED)
        whole = find_values(model, tiny_tokenizer, requests, 1, contexts, replace(CLAMPED, reuse_prefix=False))
        assert torch.allclose(fast.vectors, whole.vectors, rtol=1e-9)


@pytest.mark.parametrize("fact_token", ["subject_first", "subject_first_after_last", "last"])
def test_the_fact_can_be_looked_up_elsewhere(tiny_tokenizer: PreTrainedTokenizerFast, fact_token: Any) -> None:
    model = family("gpt2", len(tiny_tokenizer)).double()
    settings = replace(CLAMPED, fact_token=fact_token)
    rows = rewriting_rows(model, tiny_tokenizer, REQUESTS, CONTEXTS, fact_token)
    usual = rewriting_rows(model, tiny_tokenizer, REQUESTS, CONTEXTS, "subject_last")
    assert [row.position for row in rows[1]] != [row.position for row in usual[1]]
    assert all(row.position < len(row.ids) - len(row.targets) + 1 for searched in rows for row in searched)
    fast = find_values(model, tiny_tokenizer, REQUESTS, 1, CONTEXTS, settings)
    whole = find_values(model, tiny_tokenizer, REQUESTS, 1, CONTEXTS, replace(settings, reuse_prefix=False))
    assert torch.allclose(fast.vectors, whole.vectors, rtol=1e-9)
    start = find_values(model, tiny_tokenizer, REQUESTS, 1, CONTEXTS, replace(settings, steps=1))
    assert (fast.loss < start.loss).any()
