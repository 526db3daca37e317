"""The folder of an adapter: what PEFT writes is read with its scales, what is no plain LoRA is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from corsa_plugins.adapters import AdapterError, LoraAdapter, LowRank, read_adapter, write_adapter
from corsa_plugins.errors import SettingError
from corsa_plugins.outputs import OutputError
from tests.adapters.test_low_rank import update
from tests.support.disk import no_file_larger_than

DOWN = "model.layers.0.mlp.down_proj"


def adapter(rank: int = 3, scale: float = 1.0) -> LoraAdapter:
    return LoraAdapter("a/base", {DOWN: update(32, 64, rank, scale=scale)}, about={"batches": []})


def trained(model: Any, folder: Path, **settings: Any) -> Any:
    """A PEFT adapter of ``model``, away from zero, and the model with it."""
    torch.manual_seed(0)
    config = peft.LoraConfig(**{"r": 3, "lora_alpha": 7, "target_modules": ["down_proj"], **settings})
    model = peft.get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.3)
    model.save_pretrained(folder)
    return model


def test_written_and_read_it_is_the_same_product_bit_for_bit(tmp_path: Path) -> None:
    before = adapter(scale=1e3)
    after = read_adapter(write_adapter(before, tmp_path / "out"))
    assert (after.base, after.transposed, after.about) == (before.base, before.transposed, before.about)
    assert torch.equal(after.updates[DOWN].delta(), before.updates[DOWN].delta())


def test_smaller_changes_are_padded_and_read_without_the_padding(tmp_path: Path) -> None:
    other = DOWN.replace("0", "1")
    before = LoraAdapter("a/base", {DOWN: update(32, 64, 2), other: update(32, 64, 5)})
    write_adapter(before, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {tensor.shape for name, tensor in tensors.items() if "lora_A" in name} == {(5, 64)}
    after = read_adapter(tmp_path / "out").updates
    assert [after[name].rank for name in (DOWN, other)] == [2, 5]


@pytest.mark.parametrize("kind", ["plain", "rslora", "patterns"])
def test_what_peft_writes_is_read_with_its_scales(kind: str, tiny_llama: LlamaForCausalLM, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "plain": {},
        "rslora": {"use_rslora": True},
        "patterns": {"rank_pattern": {"layers.1.mlp.down_proj": 5}, "alpha_pattern": {r".*\.0\.mlp\.down_proj": 11}},
    }[kind]
    model = trained(tiny_llama, tmp_path / "out", **settings)
    for name, change in read_adapter(tmp_path / "out").updates.items():
        wanted = model.base_model.model.get_submodule(name).get_delta_weight("default")
        torch.testing.assert_close(change.delta().float(), wanted.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias='all'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
    ],
)
def test_what_is_no_plain_lora_is_refused_by_name(
    settings: dict[str, Any], message: str, tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    trained(tiny_llama, tmp_path / "out", **settings)
    with pytest.raises(AdapterError, match=rf"out has .*{message}.*only plain LoRA"):
        read_adapter(tmp_path / "out")


def test_other_kinds_and_embeddings_are_refused(tiny_llama: LlamaForCausalLM, tmp_path: Path) -> None:
    peft.get_peft_model(tiny_llama, peft.IA3Config(task_type="CAUSAL_LM")).save_pretrained(tmp_path / "ia3")
    with pytest.raises(AdapterError, match="of type IA3: only LoRA"):
        read_adapter(tmp_path / "ia3")


def test_an_adapter_of_the_embedding_is_refused(tiny_llama: LlamaForCausalLM, tmp_path: Path) -> None:
    trained(tiny_llama, tmp_path / "out", target_modules=["embed_tokens"])
    with pytest.raises(AdapterError, match=r"embed_tokens\..* is no factor"):
        read_adapter(tmp_path / "out")


def _no_config(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def _config(**changes: Any) -> Any:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def _tensors(change: Any) -> Any:
    def rewrite(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        save_file(change(load_file(path)), path)

    return rewrite


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_config, "is no adapter: there is no adapter_config.json"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "adapter_config.json cannot be read"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "no adapter_model.safetensors"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x" * 99), "cannot be read"),
        (_config(r=4), "has factors .* says rank 4"),
        (_tensors(lambda tensors: {}), "changes nothing"),
        (_tensors(lambda tensors: {n: t for n, t in tensors.items() if "lora_A" in n}), "no two factors"),
        (_tensors(lambda tensors: {n: t * float("nan") for n, t in tensors.items()}), "NaN or infinity"),
    ],
)
def test_damage_is_named(damage: Any, message: str, tmp_path: Path) -> None:
    write_adapter(adapter(), tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()  # which would name the file, and not what is wrong in it
    damage(tmp_path / "out")
    with pytest.raises(AdapterError, match=message):
        read_adapter(tmp_path / "out")


def test_one_flipped_bit_is_noticed(tmp_path: Path) -> None:
    file = write_adapter(adapter(), tmp_path / "out") / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors is not the file that was written"):
        read_adapter(tmp_path / "out")


def test_nothing_is_half_written(tmp_path: Path) -> None:
    with no_file_larger_than(500), pytest.raises(OutputError, match="cannot be written"):
        write_adapter(adapter(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    write_adapter(adapter(), tmp_path / "out")
    with pytest.raises(OutputError, match="not empty"):
        write_adapter(adapter(), tmp_path / "out")


def test_factors_that_do_not_fit_the_precision_are_refused(tmp_path: Path) -> None:
    large = LoraAdapter("a/base", {DOWN: LowRank(torch.full((2, 1), 1e9), torch.full((3, 1), 1e9))})
    with pytest.raises(SettingError, match=rf"{DOWN}: NaN or infinity in lora_A as float16"):
        write_adapter(large, tmp_path / "out", "float16")
    with pytest.raises(SettingError, match="dtype is 'int8'"):
        write_adapter(large, tmp_path / "out", "int8")
    assert list(tmp_path.iterdir()) == []
    # what would overflow in one factor and vanish in the other is fine once both share it
    write_adapter(adapter(scale=1e7), tmp_path / "out", "float16")
    rounded, exact = read_adapter(tmp_path / "out").updates[DOWN].delta(), adapter(scale=1e7).updates[DOWN].delta()
    assert float((rounded - exact).norm() / exact.norm()) < 1e-3
