"""What decides a collection, and whether there is enough of it."""

from __future__ import annotations

import logging

import pytest

from corsa_plugins.alphaedit.statistics.collect import collect_statistics
from corsa_plugins.alphaedit.statistics.layer import StatisticsError
from corsa_plugins.errors import SettingError
from tests.conftest import DOCUMENTS


def test_too_little_text_is_said(tiny_llama, tiny_tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        collected = collect_statistics(tiny_llama, tiny_tokenizer, DOCUMENTS[:8], (1,), n_tokens=10**6, length=32)
    assert f"the text gave {collected.count(1)} tokens of the 1000000" in caplog.text
    assert f"{collected.count(1)} tokens are few for the keys of layer 1, which are 64 wide" in caplog.text
    assert collected.sample(1).shape == (64, collected.count(1))  # all of them: fewer than asked for
    caplog.clear()
    with pytest.raises(StatisticsError, match=r"gave \d+ tokens, and the keys of layer 1 are 64 wide"):
        collect_statistics(tiny_llama, tiny_tokenizer, DOCUMENTS[:1], (1,), n_tokens=1000)
    with pytest.raises(StatisticsError, match="gave 0 tokens"):
        collect_statistics(tiny_llama, tiny_tokenizer, ["", " \n"], (1,), n_tokens=1000)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        collect_statistics(tiny_llama, tiny_tokenizer, DOCUMENTS, (1,), n_tokens=640)
    assert not caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_tokens": 0}, "n_tokens"),
        ({"n_tokens": 1e6}, "n_tokens"),
        ({"n_tokens": 63}, "n_tokens is 63: the keys of layer 0 are 64 wide"),
        ({"length": 0}, "length"),
        ({"length": 1}, "length is 1: 1 tokens of a row"),
        ({"length": 129}, "the model reads 128"),
        ({"batch_size": 0}, "batch_size"),
        ({"sample_size": -1}, "sample_size"),
        ({"seed": "0"}, "seed"),
        ({"layers": ()}, "layers is empty"),
        ({"layers": (0, 2)}, "2 blocks"),
        ({"layers": (-1,)}, "2 blocks"),
    ],
)
def test_settings_out_of_range_are_named(tiny_llama, tiny_tokenizer, changes, message):
    settings = {"n_tokens": 100, "layers": (0,), **changes}
    with pytest.raises(SettingError, match=message):
        collect_statistics(tiny_llama, tiny_tokenizer, DOCUMENTS, settings.pop("layers"), **settings)
