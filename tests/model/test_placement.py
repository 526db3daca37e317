"""A model whose layers lie on different devices answers, is known and is changed as the same model in one place."""

from __future__ import annotations

import copy
import gc
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from corsa_plugins.errors import SettingError
from corsa_plugins.model.asking import generate_answers, score_targets
from corsa_plugins.model.borrowing import frozen
from corsa_plugins.model.identity import Fingerprint, model_key
from corsa_plugins.model.loading import LoadingError, load_model, put_adapters
from corsa_plugins.model.placement import (
    Placement,
    bring_in,
    execution_device,
    is_offloaded,
    named_values,
    tensor_of,
)
from corsa_plugins.model.stored import save_model
from tests.support.placed import device_map, in_parts

pytest.importorskip("accelerate")

PROMPTS = ["The capital of France is", "Anna Berg was born in", "Rome"]


@pytest.fixture
def parts(taught_llama, tiny_tokenizer, tmp_path):
    return in_parts(taught_llama, tiny_tokenizer, tmp_path / "model")


def tied(model):
    """The same with one weight for embedding and head."""
    model.config.tie_word_embeddings = True
    model.tie_weights()
    return model


def same_values(model, other):
    return dict(named_values(model)).keys() == dict(named_values(other)).keys() and all(
        torch.equal(value, other_value)
        for (_, value), (_, other_value) in zip(named_values(model), named_values(other), strict=True)
    )


def test_it_answers_alike_and_is_known_for_the_same_model(parts, taught_llama, tiny_tokenizer):
    assert is_offloaded(parts)
    assert not is_offloaded(taught_llama)
    pairs = [(prompt, "Rome") for prompt in PROMPTS]
    for _ in range(2):  # accelerate puts other parameters there at every pass
        assert generate_answers(parts, tiny_tokenizer, PROMPTS) == generate_answers(
            taught_llama, tiny_tokenizer, PROMPTS
        )
        assert score_targets(parts, tiny_tokenizer, pairs) == score_targets(taught_llama, tiny_tokenizer, pairs)
        assert Fingerprint.of(parts).matches(Fingerprint.of(taught_llama))
        assert Fingerprint.of(parts).shapes == Fingerprint.of(taught_llama).shapes
        assert model_key(parts, tiny_tokenizer) == model_key(taught_llama, tiny_tokenizer)
        assert same_values(parts, taught_llama)


def test_one_weight_by_two_names_counts_once_on_disk_too(taught_llama, tiny_tokenizer, tmp_path):
    whole = tied(taught_llama)
    parts = in_parts(whole, tiny_tokenizer, tmp_path / "model")
    for _ in range(2):
        assert same_values(parts, whole)
        assert model_key(parts, tiny_tokenizer) == model_key(whole, tiny_tokenizer)
        score_targets(parts, tiny_tokenizer, [("Rome", "Rome")])
    save_model(parts, tiny_tokenizer, tmp_path / "again")
    files = [load_file(tmp_path / name / "model.safetensors") for name in ("model", "again")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(value, files[1][name]) for name, value in files[0].items())
    with pytest.raises(SettingError, match=r"lm_head\.weight and model\.embed_tokens\.weight are one weight"):
        bring_in(parts, "lm_head")


def test_what_is_brought_in_is_changed_and_saved_and_the_files_are_left_alone(parts, tiny_tokenizer, tmp_path):
    name, before = "model.layers.0.mlp", (tmp_path / "model" / "model.safetensors").read_bytes()
    parts.eval()
    bring_in(parts, name)
    down = parts.get_submodule(name).down_proj
    assert not down.weight.is_meta
    assert parts.model.layers[0].self_attn.q_proj.weight.is_meta
    with torch.no_grad():
        down.weight.add_(1)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        changed = parts(ids).logits
        assert torch.equal(parts(ids).logits, changed)
    save_model(parts, tiny_tokenizer, tmp_path / "changed")
    again = load_model(tmp_path / "changed", device="cpu")[0]
    assert same_values(again, parts)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, changed)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before


def test_a_weight_that_is_offloaded_is_read_where_it_is(parts, taught_llama):
    module, own = (model.model.layers[0].mlp.down_proj for model in (parts, taught_llama))
    assert module.weight.is_meta
    assert torch.equal(tensor_of(module, "weight"), own.weight)
    assert execution_device(module) == torch.device("cpu")
    assert module.weight.is_meta


def test_what_asks_for_gradients_is_as_before(parts):
    ids = torch.tensor([[5, 6, 7]])
    for wanted in (True, False):
        for parameter in parts.parameters():
            parameter.requires_grad_(wanted)
        with frozen(parts):
            parts(ids)
            assert not any(parameter.requires_grad for parameter in parts.parameters())
        assert all(parameter.requires_grad == wanted for parameter in parts.parameters())


def test_half_precision_is_widened_for_a_processor_as_in_one_place(taught_llama, tiny_tokenizer, tmp_path):
    half = copy.deepcopy(taught_llama).half()
    parts = in_parts(half, tiny_tokenizer, tmp_path / "model")
    assert parts.dtype == (torch.float16 if torch.cuda.is_available() else torch.float32)
    assert in_parts(half, tiny_tokenizer, tmp_path / "model", dtype="bfloat16").dtype == torch.bfloat16


def test_pickled_weights_go_through_a_folder_that_goes_with_the_model(taught_llama, tiny_tokenizer, tmp_path):
    taught_llama.config.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    torch.save(taught_llama.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    there = set(Path(tempfile.gettempdir()).glob("corsa-offload-*"))
    parts = load_model(tmp_path / "model", device=Placement(device_map(taught_llama)))[0]
    (folder,) = set(Path(tempfile.gettempdir()).glob("corsa-offload-*")) - there
    assert any(folder.iterdir())
    assert same_values(parts, taught_llama)
    del parts
    gc.collect()
    assert not folder.exists()


def test_a_map_is_made_by_how_much_memory_there_is(taught_llama, tiny_tokenizer, tmp_path):
    save_model(taught_llama, tiny_tokenizer, tmp_path)
    size = sum(parameter.numel() * parameter.element_size() for parameter in taught_llama.parameters())
    small = load_model(tmp_path, device=Placement("sequential", {"cpu": size * 9 // 10}))[0]
    assert is_offloaded(small)
    assert same_values(small, taught_llama)
    large = load_model(tmp_path, device=Placement("auto", {"cpu": "20GiB"}))[0]
    assert not is_offloaded(large)


class TestAdapters:
    def test_it_answers_alike_and_can_be_switched(self, parts, taught_llama, tiny_tokenizer, tmp_path):
        peft = pytest.importorskip("peft")
        ids, answers = torch.tensor([[5, 6, 7]]), {}
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        adapted = peft.get_peft_model(taught_llama, config, adapter_name="a").eval()
        adapted.add_adapter("b", config)
        with torch.no_grad():
            for name in ("a", "b"):
                adapted.set_adapter(name)
                answers[name] = adapted(ids).logits
            adapted.save_pretrained(tmp_path / "adapters", selected_adapters=["a", "b"])
            both = put_adapters(parts, {name: tmp_path / "adapters" / name for name in ("a", "b")})
            assert parts.hf_device_map
            for name in ("b", "a"):
                both.set_adapter(name)
                assert torch.equal(both(ids).logits, answers[name])
            with both.disable_adapter(), adapted.disable_adapter():
                assert torch.equal(both(ids).logits, adapted(ids).logits)

    def test_whole_modules_are_refused(self, parts, taught_llama, tiny_tokenizer, tmp_path):
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
        peft.get_peft_model(taught_llama, config).save_pretrained(tmp_path / "adapter")
        with pytest.raises(LoadingError, match=r"has whole modules \(lm_head\).* partly offloaded"):
            put_adapters(parts, {"default": tmp_path / "adapter"})


def test_placements_that_are_none(taught_llama, tiny_tokenizer, tmp_path):
    with pytest.raises(SettingError, match="device_map is 'all': choose one of auto"):
        Placement("all")
    with pytest.raises(SettingError, match="device_map is empty"):
        Placement({})
    with pytest.raises(SettingError, match="max_memory is for device maps that are made"):
        Placement({"": "cpu"}, {"cpu": 10})
    save_model(taught_llama, tiny_tokenizer, tmp_path / "model")
    with pytest.raises(LoadingError, match=r"model .* cannot be loaded: .*lm_head"):
        load_model(tmp_path / "model", device=Placement({"model": "disk"}))
