"""bfloat16 is taken by itself only where the processor computes in it."""

from __future__ import annotations

import logging

import pytest
import torch

from corsa_plugins.model.loading import load_model
from corsa_plugins.model.precision import computes_in_bfloat16


@pytest.fixture(params=[{}, {"avx512_bf16": True}], ids=["without", "with"])
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """The processor as one that has instructions for bfloat16, or has none; whether it has."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, **request.param}, raising=False)
    return bool(request.param)


def test_the_processor_says_so(instructions: bool) -> None:
    assert computes_in_bfloat16("cpu") == instructions
    if not torch.cuda.is_available():
        assert computes_in_bfloat16() == instructions


@pytest.mark.parametrize("has", [False, True])
def test_a_torch_that_lists_nothing_is_asked_by_name(has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert computes_in_bfloat16("cpu") == has


def test_a_model_in_bfloat16_is_warned_of_where_it_would_crawl(
    instructions: bool, tiny_llama, tiny_tokenizer, tmp_path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_llama.to(torch.bfloat16).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "corsa_plugins.model.loading"):
        load_model(tmp_path, device="cpu", dtype="float32")
        assert not caplog.records
        assert load_model(tmp_path, device="cpu")[0].dtype == torch.bfloat16
    assert ("line --dtype" in caplog.text) != instructions


def test_a_training_on_the_processor_is_in_what_it_computes_in(instructions: bool, tmp_path) -> None:
    pytest.importorskip("trl")
    from trl_ext import CoRSAConfig

    assert CoRSAConfig(str(tmp_path), use_cpu=True).bf16 == instructions
    assert CoRSAConfig(str(tmp_path), use_cpu=True, bf16=True).bf16
    assert not CoRSAConfig(str(tmp_path), use_cpu=True, bf16=False).bf16
