"""DeepSpeed's ZeRO: two processes that each keep a part of the base come to what comes of all of it in one."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.errors import SettingError
from tests.trl_ext.conftest import trained_adapter
from tests.trl_ext.test_sharding import shards_come_to_what_the_whole_does, whole_and_in_parts
from trl_ext import CoRSAConfig
from trl_ext.sharding import sharding_asked_for
from trl_ext.zero import adapters_apart, check_adapters, read_zero

installed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed: pip install deepspeed"
)

ZERO3 = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
    "ACCELERATE_DEEPSPEED_ZERO3_INIT": "true",
    "DS_ACCELERATOR": "cpu",
}


@installed
def test_a_base_in_parts_trains_as_a_whole_one(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    for one, two in whole_and_in_parts(tiny_llama, tiny_tokenizer, tmp_path, ZERO3):
        adapter = sum(len(values) for values in one["weights"].values())
        assert one["here"] == one["all"] == two["all"]
        assert two["here"] - adapter <= 0.51 * (two["all"] - adapter)  # parts are of one length


@installed
def test_a_run_with_everything_in_it(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    shards_come_to_what_the_whole_does(taught_llama, tiny_tokenizer, tmp_path, ZERO3)


def test_what_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert read_zero(None) is None
    for name, value in ZERO3.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "cpu")
    asked = read_zero(None)
    assert asked is not None
    assert (asked.stage, asked.first_reads, asked.settings["offload_param"]["device"]) == (3, True, "cpu")
    config = CoRSAConfig(str(tmp_path), use_cpu=True, bf16=False)
    assert config.zero == asked
    assert config.deepspeed_plugin is None  # transformers and accelerate go on as without
    assert config.parallel_mode.value == "not_parallel"
    of_training = {"zero_optimization": {"stage": 3, "stage3_max_live_parameters": 5}, "bf16": {"enabled": "auto"}}
    own = CoRSAConfig(str(tmp_path), use_cpu=True, bf16=False, deepspeed=of_training)
    assert own.zero.settings["stage3_max_live_parameters"] == 5
    assert own.deepspeed == of_training
    with pytest.raises(SettingError, match="and there is one: launch several"):
        sharding_asked_for(own)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fp16": {"enabled": True}}, "fp16 is not supported with CoRSA: .* Use bf16"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler is not supported with CoRSA: set lr_scheduler_type"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "offload_optimizer is not .* Leave it out"),
        ({"zero_optimization": {"offload_param": {"device": "nvme"}}}, "offload_param to nvme .* Use cpu"),
        ({"zero_optimization": {"zero_quantized_weights": True}}, "zero_quantized_weights is not supported"),
        ({"tensor_parallel": {"autotp_size": 2}}, "tensor_parallel is not supported with CoRSA: leave it out"),
        ({"gradient_clipping": 0.5}, "gradient_clipping is 0.5 and max_grad_norm of the training 1: leave the former"),
        ({"bf16": {"enabled": True}}, "bf16 is True and that of the training False"),
        ({}, None),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str | None) -> None:
    section = {"stage": 3} | changes.get("zero_optimization", {})
    args: Any = SimpleNamespace(bf16=False, max_grad_norm=1.0, gradient_accumulation_steps=1, world_size=2)

    def check() -> None:
        args.zero = read_zero({"train_batch_size": "auto"} | changes | {"zero_optimization": section})
        sharding_asked_for(args)

    if message is not None:
        with pytest.raises(SettingError, match=message):
            check()
    else:
        args.zero = read_zero({"zero_optimization": {"stage": 2}})
        assert sharding_asked_for(args) is None


@installed
def test_adapters_that_look_into_the_base_are_refused(tiny_llama: LlamaForCausalLM) -> None:
    check_adapters(trained_adapter(copy.deepcopy(tiny_llama)))
    with pytest.raises(SettingError, match=r"self_attn\.q_proj: variants of LoRA are not supported with ZeRO-3"):
        check_adapters(trained_adapter(tiny_llama, use_dora=True))


def test_adapters_apart(tiny_llama: LlamaForCausalLM) -> None:
    model = trained_adapter(tiny_llama)
    names = [name for name, _ in model.named_parameters()]
    with adapters_apart(model) as apart:
        assert sum(1 for part in apart for _ in part.parameters()) == sum("lora_" in name for name in names)
        assert not any("lora_" in name for name, _ in model.named_parameters())
    assert [name for name, _ in model.named_parameters()] == names
