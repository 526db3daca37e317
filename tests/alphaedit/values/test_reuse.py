"""What is run once is what a model can be itself with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from corsa_plugins.alphaedit.lookup.rows import rewriting_rows
from corsa_plugins.alphaedit.values.reuse import exact_reuse
from corsa_plugins.alphaedit.values.search import ValueSettings, find_values
from corsa_plugins.model.architecture import ArchitectureError, find_architecture
from corsa_plugins.model.borrowing import frozen
from tests.support.families import CONTEXTS, NAMES, REQUESTS, family
from tests.support.values import CLAMPED, compare


@pytest.mark.parametrize("name", NAMES)
def test_every_family_reuses_all_and_is_the_literal_optimisation(
    name: str, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = family(name, len(tiny_tokenizer))
    rows = rewriting_rows(model, tiny_tokenizer, REQUESTS, CONTEXTS, "subject_last")
    settings = ValueSettings(steps=5, lr=0.3, clamp=4.0, weight_decay=0.01)
    with frozen(model):
        assert exact_reuse(find_architecture(model), 1, rows, settings) == "blocks and tokens"
    searched = compare(model, tiny_tokenizer, 1, settings, 1e-4, REQUESTS[:2])
    start = find_values(model, tiny_tokenizer, REQUESTS[:2], 1, CONTEXTS, replace(settings, steps=1))
    assert torch.equal(start.vectors, start.initial)
    assert (searched.loss < start.loss).all()


@pytest.mark.parametrize(
    ("name", "reused"),
    [
        ("olmo", "blocks and tokens"),
        ("gemma4", "blocks"),  # the last block reads keys that an earlier one has made
        ("qwen3_5", "blocks"),  # states, of which no token can be told from another, in some blocks
        ("falcon_h1", "blocks"),  # and here beside the keys
    ],
)
def test_what_is_kept_beside_keys_is_read_again(
    name: str, reused: str, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = family(name, len(tiny_tokenizer))
    parts = find_architecture(model)
    rows = rewriting_rows(model, tiny_tokenizer, REQUESTS, CONTEXTS, "subject_last")
    with frozen(model):
        assert exact_reuse(parts, 1, rows, CLAMPED, parts.ffn(1).down.module) == reused


def test_a_block_that_puts_out_several_streams_needs_a_site(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = family("gemma3n", len(tiny_tokenizer))
    with pytest.raises(ArchitectureError, match=r"block 1 \(Gemma3nTextDecoderLayer\) puts out \(4, .*site="):
        find_values(model, tiny_tokenizer, REQUESTS, 1, CONTEXTS, CLAMPED)


def test_a_model_that_cannot_reuse_runs_whole(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """What flows past the blocks: here the last one looks at what the first was given."""
    model: Any = family("llama2", len(tiny_tokenizer)).double()
    kept: dict[str, Any] = {}
    first, last = model.model.layers[0], model.model.layers[2]
    first.mlp.register_forward_pre_hook(lambda module, args: kept.update(seen=args[0]))
    last.mlp.register_forward_pre_hook(lambda module, args: (args[0] + kept["seen"][: len(args[0]), -1:],))
    parts = find_architecture(model)
    rows = rewriting_rows(model, tiny_tokenizer, REQUESTS, CONTEXTS, "subject_last")
    with frozen(model):
        assert exact_reuse(parts, 0, rows, CLAMPED) == "nothing"
    whole = find_values(model, tiny_tokenizer, REQUESTS, 0, CONTEXTS, replace(CLAMPED, reuse_prefix=False))
    assert torch.equal(find_values(model, tiny_tokenizer, REQUESTS, 0, CONTEXTS, CLAMPED).vectors, whole.vectors)
