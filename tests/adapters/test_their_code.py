"""The servers' own code reads what is written, where it is there: vLLM, and llama.cpp in LLAMA_CPP_HOME."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from corsa_plugins.adapters import export_state, read_adapter
from tests.fixtures.adapters import Edited


def test_vllm_takes_it_up_to_the_rank_that_is_told(edited: Edited, tmp_path: Path) -> None:
    peft_helper = pytest.importorskip("vllm.lora.peft_helper", reason="needs vLLM, which does not run everywhere")
    from vllm.config.lora import LoRAConfig

    export_state(edited.state, tmp_path / "out")
    helper = peft_helper.PEFTHelper.from_local_dir(str(tmp_path / "out"), None)
    helper.validate_legal(LoRAConfig(max_lora_rank=8))
    assert helper.vllm_lora_scaling_factor == 1
    with pytest.raises(ValueError, match="greater than max_lora_rank"):
        helper.validate_legal(LoRAConfig(max_lora_rank=1))


def test_llama_cpp_converts_it_to_the_same_factors(edited: Edited, tmp_path: Path) -> None:
    home = os.environ.get("LLAMA_CPP_HOME")
    if not home:
        pytest.skip("LLAMA_CPP_HOME is not set: a folder with llama.cpp's convert_lora_to_gguf.py")
    gguf = pytest.importorskip("gguf", reason="needs gguf: pip install 'corsa-plugins[gguf]'")
    export_state(edited.state, tmp_path / "out")
    edited.base.model.config.save_pretrained(tmp_path / "base")
    converter, file = Path(home) / "convert_lora_to_gguf.py", tmp_path / "out.gguf"
    command = [sys.executable, converter, "--base", tmp_path / "base", "--outfile", file, tmp_path / "out"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=home)
    assert done.returncode == 0, done.stderr
    reader = gguf.GGUFReader(file)
    tensors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    assert sorted(tensors) == ["blk.0.ffn_down.weight.lora_a", "blk.0.ffn_down.weight.lora_b"]
    assert float(reader.fields["adapter.lora.alpha"].contents()) == 5
    (update,) = read_adapter(tmp_path / "out").updates.values()
    right, left = (tensors[f"blk.0.ffn_down.weight.lora_{part}"] for part in "ab")
    assert torch.equal(left.double() @ right.double(), update.delta())
