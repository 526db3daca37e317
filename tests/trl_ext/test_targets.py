"""What an adapter of a mixture of experts trains: the experts, and never the router unless it is asked for by name."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import PeftModel
from transformers import PreTrainedTokenizerFast

from corsa_plugins.errors import SettingError
from tests.model.test_architecture import build
from tests.model.test_loading import SEEING
from tests.support.families import family as small_of
from tests.support.mixtures import MIXTURES
from tests.trl_ext.conftest import MakeTrainer, lora


def model_of(family: str, tokenizer: PreTrainedTokenizerFast) -> Any:
    return build(MIXTURES[family][0](vocab_size=len(tokenizer)))


def trained(trainer: Any) -> set[str]:
    """Names of the modules that have trained parameters, without PEFT's own in them."""
    names = (name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad)
    return {name.partition(".lora_")[0].removeprefix("base_model.model.").replace(".base_layer", "") for name in names}


def dense(config: Any) -> list[str]:
    """Names that a block without experts would have."""
    return ["mlp.down_proj"] if getattr(config, "first_k_dense_replace", 0) else []


@pytest.mark.parametrize(
    "family", ["mixtral", "qwen3_5_moe", "gpt_oss", "deepseek_v3", "granitemoeshared", "gemma4_moe"]
)
def test_all_linear_trains_the_experts_and_not_what_routes(
    family: str, make_trainer: MakeTrainer, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    _, experts, shared, routers, _ = MIXTURES[family]
    with caplog.at_level(logging.WARNING, "corsa_plugins.model.targets"):
        trainer = make_trainer(model=model_of(family, tiny_tokenizer), max_steps=2, learning_rate=1e-2)
    names = trained(trainer)
    assert any(name.endswith(experts) for name in names)
    assert any("attn" in name for name in names)
    assert shared is None or any(f"{shared}." in name for name in names)
    assert all(any(name.endswith(layer) for name in names) for layer in dense(trainer.model.config))
    assert not any(name.endswith(router) for name in names for router in routers)
    assert f"{experts}.down_proj" in caplog.text
    assert routers[0] in caplog.text
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert any(f"{experts}." in name and "lora_B" in name for name in moved)
    assert all("lora_" in name for name in moved)


def test_what_text_does_not_reach_is_left_alone(
    make_trainer: MakeTrainer, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    config = SEEING["qwen3_5"](len(tiny_tokenizer))
    model = hf.Qwen3_5ForConditionalGeneration(config)
    names = trained(make_trainer(model=model, peft_config=lora(target_modules="all-linear")))
    assert {name.partition(".layers.")[0] for name in names} == {"model.language_model"}
    excluded = lora(target_modules="all-linear", exclude_modules=["down_proj"])
    fewer = trained(make_trainer(model=hf.Qwen3_5ForConditionalGeneration(config), peft_config=excluded))
    assert fewer == {name for name in names if not name.endswith("down_proj")}


def test_a_model_that_trl_finds_no_backbone_in_is_refused_by_name(
    make_trainer: MakeTrainer, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(SettingError, match=r"Llama4ForCausalLM does not say which part .* alphaedit\+ or rsft"):
        make_trainer(model=model_of("llama4", tiny_tokenizer))


def test_what_peft_refuses_is_left_out(make_trainer: MakeTrainer, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    names = trained(make_trainer(model=small_of("falcon_h1", len(tiny_tokenizer))))
    assert not any(name.endswith("out_proj") for name in names)
    assert {name.rpartition(".")[2] for name in names} >= {"in_proj", "q_proj", "down_proj"}


def test_a_model_by_its_name_is_trained_alike(
    make_trainer: MakeTrainer, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = model_of("mixtral", tiny_tokenizer)
    model.save_pretrained(tmp_path / "model")
    assert trained(make_trainer(model=str(tmp_path / "model"))) == trained(make_trainer(model=model))


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_the_adapter_is_the_same_when_it_is_loaded(
    family: str, make_trainer: MakeTrainer, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = model_of(family, tiny_tokenizer)
    bare = copy.deepcopy(model)
    trainer = make_trainer(model=model, max_steps=2, learning_rate=1e-1)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    loaded = PeftModel.from_pretrained(bare, str(tmp_path / "adapter")).eval()
    ids = torch.arange(3, 11)[None]
    with torch.no_grad():
        expected = trainer.model.eval()(input_ids=ids).logits
        with loaded.disable_adapter():
            before = loaded(input_ids=ids).logits
        assert torch.allclose(loaded(input_ids=ids).logits, expected, atol=1e-5)
        assert not torch.allclose(before, expected, atol=1e-3)


def test_what_is_named_one_by_one_stays_and_a_router_is_said(
    make_trainer: MakeTrainer, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_of("qwen3_5_moe", tiny_tokenizer)
    targets = lora(target_modules=["out_proj", "shared_expert_gate"])
    with caplog.at_level(logging.WARNING, "corsa_plugins.model.targets"):
        trainer = make_trainer(model=model, peft_config=targets)
    assert {name.rpartition(".")[2] for name in trained(trainer)} == {"out_proj", "shared_expert_gate"}
    assert "routes tokens" in caplog.text
    assert "shared_expert_gate" in caplog.text


def test_what_fused_experts_cannot_have_is_refused(
    make_trainer: MakeTrainer, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = model_of("mixtral", tiny_tokenizer)
    with pytest.raises(SettingError, match=r"lora_dropout=0\.1.*mlp\.experts\.down_proj"):
        make_trainer(model=model, peft_config=lora(lora_dropout=0.1))


def test_a_model_without_experts_is_trained_as_ever(
    make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "corsa_plugins.model.targets"):
        trainer = make_trainer(peft_config=lora())
    assert not caplog.records
    assert trainer.model.peft_config["default"].exclude_modules is None
