"""Text of a model's own: by seed, as long as asked for, and taken up where it was."""

from __future__ import annotations

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from corsa_plugins.errors import SettingError
from corsa_plugins.journal import OtherWorkError
from corsa_plugins.model.sampling import likeliest, sample_continuations, sample_texts

SIZE = {"length": 16, "batch_size": 4}


def _count(tokenizer, texts) -> int:
    return sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)


def test_the_seed_decides_and_there_are_as_many_tokens_as_asked_for(taught_llama, tiny_tokenizer) -> None:
    first, again, other = (sample_texts(taught_llama, tiny_tokenizer, 200, seed=seed, **SIZE) for seed in (0, 0, 1))
    assert first == again != other
    assert 200 <= _count(tiny_tokenizer, first) < 200 + 4 * 16 * 2
    assert all(text.strip() for text in first)
    assert first == sample_texts(taught_llama, tiny_tokenizer, 400, **SIZE)[: len(first)]


def test_cold_sampling_says_what_the_model_holds_most_likely(taught_llama, tiny_tokenizer) -> None:
    texts = sample_texts(taught_llama, tiny_tokenizer, 20, temperature=1e-4, **SIZE)
    ids = torch.tensor([[tiny_tokenizer.bos_token_id]])
    with torch.no_grad():
        expected = taught_llama.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=2)
    begins = tiny_tokenizer.decode(expected[0, 1:], skip_special_tokens=True)
    assert texts[0].startswith(begins.split("<")[0])


@pytest.mark.parametrize(("spread", "top_p"), [(6.0, 0.95), (0.1, 0.95), (6.0, 1e-6), (2.0, 1.0)])
def test_the_likeliest_tokens_are_those_of_a_sorted_vocabulary(spread: float, top_p: float) -> None:
    scores = spread * torch.randn(5, 3000, generator=torch.Generator().manual_seed(0))
    expected = TemperatureLogitsWarper(0.8)(None, scores)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    assert torch.equal(likeliest(0.8, top_p, None, scores), expected)


def test_rows_go_on_behind_an_end_and_are_cut_there(taught_llama, tiny_tokenizer) -> None:
    texts = sample_texts(taught_llama, tiny_tokenizer, 300, length=64, batch_size=4)
    assert len(texts) > 300 // 64  # the taught model ends its sentences
    special = tiny_tokenizer.all_special_tokens
    assert not any(token in text for text in texts for token in special)


def test_it_goes_on_where_it_was(tmp_path, taught_llama, tiny_tokenizer, monkeypatch) -> None:
    journal = tmp_path / "self.jsonl"
    whole = sample_texts(taught_llama, tiny_tokenizer, 300, **SIZE)
    sample_texts(taught_llama, tiny_tokenizer, 100, journal=journal, **SIZE)
    begun = journal.read_bytes()
    assert sample_texts(taught_llama, tiny_tokenizer, 300, journal=journal, **SIZE) == whole
    assert journal.read_bytes().startswith(begun)
    monkeypatch.setattr("corsa_plugins.model.sampling.sample_continuations", None)  # sampling would fail
    assert sample_texts(taught_llama, tiny_tokenizer, 300, journal=journal, **SIZE) == whole
    with pytest.raises(OtherWorkError, match="other seed"):
        sample_texts(taught_llama, tiny_tokenizer, 300, seed=3, journal=journal, **SIZE)


def test_nothing_else_is_changed(taught_llama, tiny_tokenizer) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    taught_llama.train()
    config = taught_llama.generation_config
    sample_texts(taught_llama, tiny_tokenizer, 10, **SIZE)
    assert torch.equal(torch.rand(3), expected)
    assert taught_llama.training
    assert taught_llama.generation_config is config


def test_settings(taught_llama, tiny_tokenizer) -> None:
    for settings, message in (({"length": 0}, "length is 0"), ({"temperature": 0.0}, "temperature is 0")):
        with pytest.raises(SettingError, match=message):
            sample_texts(taught_llama, tiny_tokenizer, 10, **settings)


def test_texts_end_where_they_are_told_to_and_seeds_of_any_length_differ(taught_llama, tiny_tokenizer):
    ids = tiny_tokenizer("The capital of France is")["input_ids"]
    whole = sample_continuations(taught_llama, [ids], 8, top_p=0.01)[0]
    assert sample_continuations(taught_llama, [ids], 8, top_p=0.01, ends=[1])[0] == whole[: whole.index(1)]
    texts = {
        str(sample_continuations(taught_llama, [ids], 8, temperature=5.0, seed=f"{seed} of a problem"))
        for seed in range(9)
    }
    assert len(texts) > 5
