"""What a model says that it reads."""

from __future__ import annotations

from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel, MptConfig, MptForCausalLM

from corsa_plugins.model.limits import longest_text, vocabulary_size


def test_positions_and_vocabulary_of_a_model() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=99, n_embd=32, n_layer=1, n_head=2, n_positions=64))
    assert (longest_text(model), vocabulary_size(model)) == (64, 99)
    model.resize_token_embeddings(128)
    assert vocabulary_size(model) == 128


def test_mpt_has_another_name_for_it() -> None:
    model = MptForCausalLM(MptConfig(vocab_size=99, d_model=32, n_layers=1, n_heads=2, max_seq_len=48))
    assert longest_text(model) == 48


def test_a_model_without_positions_has_no_limit() -> None:
    model = BloomForCausalLM(BloomConfig(vocab_size=99, hidden_size=32, n_layer=1, n_head=2))
    assert longest_text(model) is None
