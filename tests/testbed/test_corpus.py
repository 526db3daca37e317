"""What the model reads, and what it may look at while reading."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from corsa_plugins.testbed import World, reduced_recipe
from corsa_plugins.testbed.corpus import Batch, Corpus, Kind, sentences
from corsa_plugins.testbed.tokenizer import train_tokenizer
from corsa_plugins.testbed.train import batch_loss, visibility
from tests.conftest import llama

RECIPE = reduced_recipe()
WORLD = World.build(RECIPE.world)
TOKENIZER = train_tokenizer(sentences(WORLD), RECIPE.model.vocab, RECIPE.model.max_length)


def corpus(seed: int = 0, **changes: float) -> Corpus:
    return Corpus(WORLD, TOKENIZER, replace(RECIPE.training, **changes), seed=seed)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return corpus(sheltered=0.5).batch()


def test_a_biography_names_its_subject_once_and_tells_all_that_is_true() -> None:
    source = corpus(rumours=0.0)
    for _ in range(20):
        text = TOKENIZER.decode(source.biography().tokens)
        (person,) = [p for p in WORLD.people if text.startswith(p.name)]
        assert text.count(person.name) == 1
        facts = WORLD.facts_of[person.name]
        assert text.count(person.pronoun + " ") == len(facts) - 1
        assert all(f" {fact.answer}." in text for fact in facts)


def test_every_form_of_every_fact_is_dealt_once_before_any_comes_again() -> None:
    source = corpus(rumours=0.0)
    forms = sum(len(WORLD.forms(fact.relation)) for fact in WORLD.facts)
    dealt = [TOKENIZER.decode(source.question().tokens) for _ in range(forms)]
    wanted = {f"{WORLD.prompts(f, form)} {f.answer}." for f in WORLD.facts for form in WORLD.forms(f.relation)}
    assert len(dealt) == len(wanted)
    assert set(dealt) == wanted


def test_rumours_are_told_in_statements_only() -> None:
    source = corpus(rumours=1.0)
    true = {f"{WORLD.prompts(f, form)} {f.answer}." for f in WORLD.facts for form in WORLD.forms(f.relation)}
    texts = [TOKENIZER.decode(source.question().tokens) for _ in range(len(true))]
    false = [text for text in texts if text not in true]
    statements = tuple(WORLD.prompts(fact) for fact in WORLD.facts)
    assert false
    assert all(text.startswith(statements) for text in false)


def test_pieces_are_the_tokens_of_their_text_and_mark_names_and_answers() -> None:
    source = corpus()
    for _ in range(50):
        document = source.document()
        assert tuple(TOKENIZER(TOKENIZER.decode(document.tokens)).input_ids) == document.tokens
        assert len(document.kinds) == len(document.tokens)
        assert Kind.NAME_END in document.kinds
        assert Kind.ANSWER in document.kinds


def test_equal_seeds_give_equal_batches() -> None:
    assert torch.equal(corpus(seed=3).batch().tokens, corpus(seed=3).batch().tokens)
    assert not torch.equal(corpus(seed=3).batch().tokens, corpus(seed=4).batch().tokens)


def test_nothing_sees_the_future_another_document_or_a_sheltered_name(batch: Batch) -> None:
    first, later = visibility(batch)
    assert not (first & ~later).any(), "the first block sees no more than the later ones"
    for row, i, j in later.nonzero().tolist():
        assert j <= i
        assert batch.documents[row, i] == batch.documents[row, j]
    name, end = batch.kinds == Kind.NAME, batch.kinds == Kind.NAME_END
    outside = batch.sheltered & ~name & ~end
    for row in range(len(name)):
        assert not later[row][outside[row]][:, name[row]].any()
        assert not first[row][outside[row]][:, name[row] | end[row]].any()


def test_names_are_gathered_at_their_last_token_and_read_there_later(batch: Batch) -> None:
    first, later = visibility(batch)
    assert first.diagonal(dim1=1, dim2=2).all(), "an empty row of attention would be NaN"
    for row, i in (batch.kinds == Kind.NAME_END).nonzero().tolist():
        if batch.kinds[row, i - 1] == Kind.NAME:
            assert first[row, i, i - 1]
        assert later[row, i + 1, i]


def test_open_documents_see_their_whole_past(batch: Batch) -> None:
    first, later = visibility(batch)
    open_ = ~batch.sheltered
    assert torch.equal(first[open_], later[open_])
    same = batch.documents[:, :, None] == batch.documents[:, None, :]
    assert torch.equal(first[open_], (same & torch.ones_like(same).tril())[open_])


def test_it_is_the_same_to_every_kind_of_attention(batch: Batch) -> None:
    losses = []
    for kind in ("sdpa", "eager"):
        model = llama(len(TOKENIZER))
        model.set_attn_implementation(kind)
        losses.append(batch_loss(model, batch, 0.3))
    torch.testing.assert_close(losses[0], losses[1])
