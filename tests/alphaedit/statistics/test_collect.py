"""Collecting is the plain sum, whatever the batches."""

from __future__ import annotations

import pytest
import torch

from corsa_plugins.alphaedit.statistics.collect import collect_statistics
from corsa_plugins.alphaedit.statistics.layer import StatisticsError
from corsa_plugins.alphaedit.statistics.reservoir import Reservoir
from corsa_plugins.alphaedit.statistics.statistics import KeyStatistics
from corsa_plugins.errors import CorsaError, SettingError
from tests.conftest import DOCUMENTS, llama
from tests.support.collecting import collect_into, fails_after, plain_keys, plain_rows, tiny_gpt2


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize(("build", "layers"), [(llama, (0, 1)), (tiny_gpt2, (1, 0)), (tiny_gpt2, (2,))])
def test_it_is_the_plain_sum_of_outer_products(build, layers, pack, tiny_tokenizer):
    model = build(len(tiny_tokenizer)).double().eval()
    collected = collect_statistics(
        model, tiny_tokenizer, DOCUMENTS, layers, n_tokens=701, length=24, batch_size=5, pack=pack, sample_size=40
    )
    rows = plain_rows(tiny_tokenizer, DOCUMENTS, 24, pack, 701)
    assert collected.layers == tuple(sorted(layers))
    sampled = [item for _, item in sorted(Reservoir(40, 0).take(701).items())]  # the same tokens in every layer
    for layer in layers:
        keys = plain_keys(model, rows, layer)
        assert collected.count(layer) == keys.shape[1] == 701
        # Llama's rotary angles are float32, and padding moves the last bit of a sum
        assert torch.allclose(collected.moment(layer), keys @ keys.mT / 701, rtol=1e-7, atol=1e-9)
        assert torch.allclose(collected.sample(layer).double(), keys[:, sampled], atol=1e-5)


def test_batches_change_rounding_only_and_the_sample_not_at_all(tiny_llama, tiny_tokenizer):
    def collect(batch_size):
        return collect_statistics(
            tiny_llama, tiny_tokenizer, DOCUMENTS, (1,), n_tokens=900, length=32, batch_size=batch_size, sample_size=50
        )

    single, many = collect(1), collect(16)
    assert torch.allclose(single.moment(1), many.moment(1), rtol=1e-5, atol=1e-7)
    assert torch.allclose(single.sample(1), many.sample(1), atol=1e-5)
    reseeded = collect_statistics(
        tiny_llama, tiny_tokenizer, DOCUMENTS, (1,), n_tokens=900, length=32, sample_size=50, seed=1
    )
    assert not torch.allclose(single.sample(1), reseeded.sample(1), atol=1e-2)


def test_finished_statistics_are_not_written_over_unasked(tmp_path, tiny_llama, tiny_tokenizer):
    first = collect_into(tmp_path, tiny_llama, tiny_tokenizer).moment(0)
    with pytest.raises(StatisticsError, match="holds finished statistics"):
        collect_into(tmp_path, tiny_llama, tiny_tokenizer)
    with pytest.raises(KeyboardInterrupt):
        collect_into(tmp_path, tiny_llama, tiny_tokenizer, fails_after(9, KeyboardInterrupt()), fresh=True)
    assert torch.equal(KeyStatistics.load(tmp_path).moment(0), first)  # there until there are others
    again = collect_into(tmp_path, tiny_llama, tiny_tokenizer, n_tokens=900, layers=(1,), fresh=True)
    assert (again.layers, again.count(1)) == ((1,), 900)
    assert not list(tmp_path.glob("layer_0*"))
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        collect_into(tmp_path / "file", tiny_llama, tiny_tokenizer)


def test_what_are_no_texts_or_no_tokens_of_the_model_is_refused(tiny_llama, tiny_tokenizer):
    with pytest.raises(CorsaError, match="document 2 is a dict"):
        collect_statistics(tiny_llama, tiny_tokenizer, ["a", {"text": "b"}], (0,), n_tokens=100)
    tiny_tokenizer.add_tokens(["Zanzibar"])
    with pytest.raises(SettingError, match="use its own tokenizer"):
        collect_statistics(tiny_llama, tiny_tokenizer, ["Zanzibar " * 200], (0,), n_tokens=100)


def test_no_sample_when_none_is_wanted(tmp_path, tiny_llama, tiny_tokenizer):
    collected = collect_into(tmp_path, tiny_llama, tiny_tokenizer, sample_size=0)
    assert collected.sample(0) is None
    assert collected.count(0) == 1200
