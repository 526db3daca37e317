"""What servers ask of an adapter's folder, from their own code: names, ranks, scales and precisions.

vLLM 0.33.0: ``vllm/lora/peft_helper.py`` (features, ranks), ``vllm/lora/utils.py`` (names). llama.cpp:
``convert_lora_to_gguf.py`` of build 11549, whose tensor names are those of the gguf package.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return config, load_file(folder / "adapter_model.safetensors")


def assert_vllm_loads(folder: Path, max_lora_rank: int = 16) -> None:
    """The conditions under which vLLM takes an adapter, in releases that know ranks by module and in those before."""
    config, tensors = read(folder)
    assert {"r", "lora_alpha", "target_modules"} <= set(config)
    assert config["peft_type"] == "LORA"
    assert config["bias"] == "none"
    assert not any(config.get(key) for key in ("modules_to_save", "use_dora", "lora_bias", "use_rslora"))
    assert not config.get("rank_pattern")
    assert not config.get("alpha_pattern")
    assert config["init_lora_weights"] is True
    assert 0 < config["r"] <= max_lora_rank
    assert config["lora_alpha"] == config["r"]
    modules: dict[str, set[str]] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.(lora_A|lora_B)\.weight", name)
        assert match, name
        modules.setdefault(match[1], set()).add(match[2])
        assert tensor.shape[match[2] == "lora_B"] == config["r"]
        assert tensor.is_floating_point()
    assert all(parts == {"lora_A", "lora_B"} for parts in modules.values())
    assert sorted(modules) == sorted(config["target_modules"])


def assert_llama_cpp_converts(folder: Path, architecture: str, n_blocks: int) -> None:
    """Each module is a tensor of the architecture by gguf's own table; the one alpha goes with the one rank."""
    gguf = pytest.importorskip("gguf", reason="needs gguf: pip install 'corsa-plugins[gguf]'")
    config, tensors = read(folder)
    assert float(config["lora_alpha"]) > 0
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, architecture), n_blocks)
    for name, tensor in tensors.items():
        assert name.endswith((".lora_A.weight", ".lora_B.weight"))
        module = re.sub(r"\.lora_[AB]\.weight$", "", name.replace("base_model.model.", ""))
        assert re.fullmatch(r"blk\.\d+\.ffn_down", names.get_name(module)), module
        assert tensor.dim() == 2
