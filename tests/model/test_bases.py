"""An adapter of another base with the same shapes goes on without an error, and not without a word."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.errors import LoadingError
from corsa_plugins.manifest import write_manifest
from corsa_plugins.model.bases import ABOUT, BASE, base_of
from corsa_plugins.model.identity import Fingerprint
from corsa_plugins.model.loading import load_model, put_adapters
from corsa_plugins.model.quantised import is_quantised
from tests.conftest import llama

peft = pytest.importorskip("peft")


@pytest.fixture(autouse=True)
def saved(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """Two models of the same shapes, and an adapter of the first, as PEFT saves one."""
    for name, seed in (("base", 0), ("other", 1)):
        llama(len(tiny_tokenizer), seed=seed).save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "adapter")


def noted(folder: Path, base: Fingerprint) -> None:
    """As a training notes it."""
    write_manifest(folder, **{BASE: base.as_dict()})


def said(caplog: pytest.LogCaptureFixture, base: Path, adapter: Path, **settings: Any) -> str:
    caplog.clear()
    with caplog.at_level(logging.WARNING, "corsa_plugins.model.bases"):
        load_model(base, adapter, device="cpu", **settings)
    # another module warns of bfloat16 where the processor does not compute in it
    return "\n".join(r.getMessage() for r in caplog.records if r.name == "corsa_plugins.model.bases")


@pytest.mark.parametrize("where", ["manifest", "exported"])
def test_an_adapter_of_this_project_is_known_by_the_weights_of_its_base(
    where: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    told = base_of(base)
    assert told is not None
    if where == "manifest":
        noted(tmp_path / "adapter", told)
    else:
        (tmp_path / "adapter" / ABOUT).write_text(json.dumps({"fingerprint": told.as_dict()}))
    (tmp_path / "base").rename(tmp_path / "moved")
    for dtype in ("float32", "bfloat16"):
        assert not said(caplog, tmp_path / "moved", tmp_path / "adapter", dtype=dtype)
    text = said(caplog, tmp_path / "other", tmp_path / "adapter")
    assert f"adapter {tmp_path / 'adapter'} was made for another base, {told}, and this is" in text
    assert f"this is {tmp_path / 'other'} (llama, " in text
    assert "other weights in model.embed_tokens.weight" in text


def test_every_one_of_several_adapters_is_looked_at(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "adapter").rename(tmp_path / "first")
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "other")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(other, config)
    adapted.save_pretrained(tmp_path / "second")
    found = base_of(adapted.unload())
    assert found is not None
    noted(tmp_path / "second", found)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with caplog.at_level(logging.WARNING, "corsa_plugins.model.bases"):
        put_adapters(base, {"1": tmp_path / "first", "2": tmp_path / "second"})
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"adapter {tmp_path / 'second'} was made for another base")


def test_a_quantised_base_is_known_by_what_is_not_quantised(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("torchao")
    found = base_of(AutoModelForCausalLM.from_pretrained(tmp_path / "base"))
    assert found is not None
    noted(tmp_path / "adapter", found)
    quantised = load_model(tmp_path / "base", device="cpu", dtype="int8")[0]
    assert any(is_quantised(module) for module in quantised.modules())
    assert not said(caplog, tmp_path / "base", tmp_path / "adapter", dtype="int8")
    assert "other weights in" in said(caplog, tmp_path / "other", tmp_path / "adapter", dtype="int8")


def test_an_adapter_of_another_tool_is_known_by_its_bases_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert not said(caplog, tmp_path / "base", tmp_path / "adapter")
    text = said(caplog, tmp_path / "other", tmp_path / "adapter")
    assert f"was made for another base, {tmp_path / 'base'}, as it says, and" in text
    (tmp_path / "base").rename(tmp_path / "moved")  # and nothing can be said of it
    assert not said(caplog, tmp_path / "moved", tmp_path / "adapter")
    assert not said(caplog, tmp_path / "other", tmp_path / "adapter")


def test_what_is_said_of_the_base_may_be_damaged(tmp_path: Path) -> None:
    found = base_of(AutoModelForCausalLM.from_pretrained(tmp_path / "base"))
    assert found is not None
    write_manifest(tmp_path / "adapter", **{BASE: found.as_dict() | {"digest": "0" * 12}})
    with pytest.raises(LoadingError, match=r"adapter/manifest\.json says of its base is damaged"):
        load_model(tmp_path / "base", tmp_path / "adapter", device="cpu")


def test_a_base_that_cannot_be_told_is_none() -> None:
    assert base_of(llama(99).to("meta")) is None
    assert base_of(peft.get_peft_model(llama(99), peft.LoraConfig(r=2, target_modules=["q_proj"]))) is None
    with torch.no_grad():
        broken = llama(99)
        broken.lm_head.weight.fill_(torch.nan)
    assert base_of(broken) is None
