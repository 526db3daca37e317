"""Other families are taught as the testbed was: a token sees its own document, and of a sheltered name what it may."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.families import FAMILIES, new_model, recipe, seen
from corsa_plugins.testbed.corpus import Corpus, sentences
from corsa_plugins.testbed.facts import WorldConfig
from corsa_plugins.testbed.tokenizer import train_tokenizer
from corsa_plugins.testbed.train import visibility
from corsa_plugins.testbed.world import World


@pytest.mark.parametrize("blocks", [1, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_token_sees_what_it_may(family: str, blocks: int) -> None:
    of_it = recipe(family)
    of_it = replace(of_it, model=replace(of_it.model, layers=blocks))
    world = World.build(WorldConfig(n_subjects=16, n_relations=3, n_answers=6))
    tokenizer = train_tokenizer(sentences(world), 512, 256)
    model = new_model(family, of_it, tokenizer).eval()
    batch = Corpus(world, tokenizer, replace(of_it.training, rows=2, row_length=48), seed=0).batch()
    first, later = visibility(batch)
    name = int((first != later).any(dim=1).any(dim=0).nonzero()[0])  # the end of one that the first block shelters
    # What reaches a token through the blocks, each of which looks at what it may.
    reached = first.float()
    for _ in range(of_it.model.layers - 1):
        reached = ((later.float() @ reached) > 0).float()
    changed = torch.zeros_like(batch.tokens, dtype=torch.bool)
    changed[:, name] = True
    other = replace(batch, tokens=torch.where(changed, (batch.tokens + 7) % len(tokenizer), batch.tokens))
    with torch.no_grad(), seen(model, batch):
        before = model(input_ids=batch.tokens, use_cache=False).logits
        after = model(input_ids=other.tokens, use_cache=False).logits
    moved = (before - after).abs().amax(-1) > 1e-5
    assert torch.equal(moved, reached[:, :, name] > 0)
    assert 0 < int(moved.sum()) < moved[:, name:].numel()  # what a plain causal mask would reach
