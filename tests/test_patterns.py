"""Regular expressions out of files end, or are not tried."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from corsa_plugins.adapters import AdapterError, read_adapter
from corsa_plugins.errors import LoadingError
from corsa_plugins.model.loading import put_adapters
from corsa_plugins.patterns import check_pattern

ENDLESS = [
    "(.*.*)*x",
    "(a+)+$",
    "(a|a)*b",
    "(a?){60}b",
    "([a-z._0-9]+)*!",
    "a?" * 30 + "a" * 30,
    ".*" * 8 + "!",
    "(.|.)+",
]
USED = [
    "layers.1.mlp.down_proj",
    r".*\.0\.mlp\.down_proj",
    r"model\.layers\.(0|1|10)\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj",
    r"^(?!.*vision).*(?:q|v)_proj$",
    r".*\.layers\.\d{1,3}\.mlp\.experts\.\d+\.(?:up|down)_proj",
    # as unsloth writes it
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:k_proj|v_proj|q_proj|"
    r"out_proj|fc1|fc2|o_proj|gate_proj|up_proj|down_proj).*?)",
]


@pytest.mark.parametrize("pattern", ENDLESS)
def test_what_may_never_end_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="may take forever"):
        check_pattern(pattern)


@pytest.mark.parametrize("pattern", USED)
def test_what_is_written_for_modules_is_taken_and_ends(pattern: str) -> None:
    check_pattern(pattern)
    start = time.monotonic()
    re.match(rf"(.*\.)?({pattern})$", "base_model.model.model.layers.10.self_attn.q_proj.text.mlp.x")
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("pattern", ["(", "a{2,1}", "(" * 5000])
def test_what_is_no_expression_is_said(pattern: str) -> None:
    with pytest.raises(ValueError, match="is no regular expression"):
        check_pattern(pattern)


@pytest.mark.parametrize("setting", ["rank_pattern", "alpha_pattern", "target_modules"])
def test_adapters_with_one_are_refused_by_name(setting: str, tiny_llama: LlamaForCausalLM, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(tiny_llama, config).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    pattern = "([a-z._0-9]+)*!"
    changed = {setting: pattern if setting == "target_modules" else {pattern: 4}}
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    with pytest.raises(LoadingError, match=rf"adapter_config\.json, {setting}: the regular expression .* forever"):
        put_adapters(tiny_llama, {"default": tmp_path})
    if setting != "target_modules":  # which is not read here
        with pytest.raises(AdapterError, match=r"adapter_config\.json.*may take forever"):
            read_adapter(tmp_path)
