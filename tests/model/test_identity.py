"""A fingerprint knows its model through precision and edits, and no other one."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPT2Config, LlamaForCausalLM, PreTrainedModel

from corsa_plugins.model import identity
from corsa_plugins.model.architecture import ArchitectureError, find_architecture
from corsa_plugins.model.identity import (
    Fingerprint,
    FingerprintError,
    checksum,
    model_key,
    tensors_digest,
    vocabulary_digest,
)
from tests.conftest import llama


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=2, n_positions=64))


@pytest.mark.parametrize("build", [gpt2, lambda: llama(99)], ids=["gpt2", "llama"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_precision_does_not_matter(build, dtype):
    model = build()
    before = Fingerprint.of(model)
    after = Fingerprint.of(model.to(dtype))
    assert before.matches(after)
    assert after.matches(before)


def test_two_roundings_one_after_the_other_do_not_matter_either():
    model = llama(99)
    assert Fingerprint.of(copy.deepcopy(model).bfloat16()).matches(Fingerprint.of(model.half()))


@pytest.mark.parametrize("build", [gpt2, lambda: llama(99)], ids=["gpt2", "llama"])
def test_edits_of_down_maps_do_not_matter_and_others_do(build):
    model = build()
    before = Fingerprint.of(model)
    architecture = find_architecture(model)
    with torch.no_grad():
        for layer in range(2):
            architecture.ffn(layer).down.weight.normal_()
    assert before.matches(Fingerprint.of(model))
    with torch.no_grad():
        architecture.ffn(1).up[0].weight.mul_(1.02)
    assert before.difference(Fingerprint.of(model)) == f"other weights in {architecture.ffn(1).up[0].name}.weight"


def test_another_seed_is_another_model():
    difference = Fingerprint.of(llama(99)).difference(Fingerprint.of(llama(99, seed=1)))
    assert difference is not None
    assert difference.startswith("other weights in model.embed_tokens.weight, model.layers.0.")
    assert "more parameters differ" in difference


@settings(max_examples=15, deadline=None)
@given(
    share=st.floats(0.01, 0.1),
    place=st.sampled_from(["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj", "lm_head"]),
    seed=st.integers(0, 2**31),
)
def test_a_fine_tuned_matrix_is_seen(share, place, seed):
    model = llama(99)
    before = Fingerprint.of(model)
    weight = model.get_submodule(place).weight
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        weight += share * weight.norm() / noise.norm() * noise
    assert before.difference(Fingerprint.of(model)) == f"other weights in {place}.weight"


def test_another_architecture_is_named():
    first = Fingerprint.of(llama(99))
    assert first.difference(Fingerprint.of(gpt2())) == "other architecture: llama and gpt2"
    difference = first.difference(Fingerprint.of(llama(98)))
    assert difference == (
        "other architecture: model.embed_tokens.weight is 99 x 32 and 98 x 32; 1 more parameters differ"
    )


def test_a_quantised_model_contradicts_another_in_what_was_not_quantised_alone():
    model, other = Fingerprint.of(llama(99)), Fingerprint.of(llama(99, seed=1))
    assert model.contradiction(Fingerprint.of(llama(99).half())) is None
    kept = {"model.embed_tokens.weight", "model.norm.weight"}
    stored = {name: shape for name, shape in model.shapes.items() if name in kept} | {"lm_head.weight.packed": (99, 16)}
    quantised = replace(model, shapes=stored, values={name: model.values[name] for name in kept})
    assert model.difference(quantised) is not None
    assert model.contradiction(quantised) is quantised.contradiction(model) is None
    assert other.contradiction(quantised) == "other weights in model.embed_tokens.weight"


def test_it_survives_json_and_damage_is_noticed():
    found = Fingerprint.of(llama(99))
    data = json.loads(json.dumps(found.as_dict()))
    assert Fingerprint.from_dict(data) == found
    assert Fingerprint.from_dict(data).digest == found.digest
    data["values"]["lm_head.weight"] = data["values"]["model.norm.weight"]
    with pytest.raises(FingerprintError, match="damaged"):
        Fingerprint.from_dict(data)
    with pytest.raises(FingerprintError, match="not the fingerprint"):
        Fingerprint.from_dict({"model_type": "llama"})


def test_a_saved_checkpoint_is_the_same_model(tmp_path):
    model = llama(99)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert Fingerprint.of(model).matches(Fingerprint.of(loaded))
    assert str(tmp_path) in str(Fingerprint.of(loaded))


def test_what_cannot_be_known_is_refused():
    model: LlamaForCausalLM = llama(99)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(FingerprintError, match=r"lm_head\.weight holds NaN"):
        Fingerprint.of(model)
    with pytest.raises(FingerprintError, match="not in memory"):
        Fingerprint.of(llama(99).to("meta"))
    peft = pytest.importorskip("peft")
    with pytest.raises(ArchitectureError, match="adapter"):
        Fingerprint.of(peft.get_peft_model(llama(99), peft.LoraConfig(r=2, target_modules=["q_proj"])))


def test_checksums_tell_bits_and_precision(monkeypatch):
    weight = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    assert checksum(weight) == checksum(weight.T.contiguous().T)
    assert checksum(weight) != checksum(weight.T)
    other = weight.clone()
    other[6, 4] = torch.nextafter(other[6, 4], torch.tensor(9.0))
    assert checksum(weight) != checksum(other)
    assert checksum(weight.half()) != checksum(weight.bfloat16())
    assert checksum(torch.zeros(2, 2).half()) != checksum(torch.zeros(2, 2).bfloat16())
    whole = checksum(weight)
    monkeypatch.setattr(identity, "_AT_ONCE", 1)
    assert checksum(weight) == whole


def test_the_key_of_a_model_is_of_all_its_weights_and_words(tiny_tokenizer):
    model = llama(99)
    key = model_key(model, tiny_tokenizer)
    assert model_key(copy.deepcopy(model), tiny_tokenizer) == key
    for parameter in model.parameters():
        with torch.no_grad():
            before = parameter.clone()
            parameter.view(-1)[-1] += 1e-3
            assert model_key(model, tiny_tokenizer)["model"] != key["model"]
            parameter.copy_(before)
    assert model_key(model.bfloat16(), tiny_tokenizer)["model"] != key["model"]
    tiny_tokenizer.add_tokens(["zyzzyva"])
    assert model_key(llama(99), tiny_tokenizer)["tokenizer"] != key["tokenizer"]


def test_the_key_of_a_model_tells_which_adapter_answers(tiny_tokenizer):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(llama(99), config, adapter_name="first")
    model.add_adapter("second", config)
    keys = [model_key(model, tiny_tokenizer)]
    model.set_adapter("second")
    keys.append(model_key(model, tiny_tokenizer))
    with model.disable_adapter():
        keys.append(model_key(model, tiny_tokenizer))
    assert len({key["model"] for key in keys}) == 3
    assert len({key["tokenizer"] for key in keys}) == 1


def test_a_vocabulary_is_known_by_its_words_and_their_numbers(tiny_tokenizer):
    before = vocabulary_digest(tiny_tokenizer)
    tiny_tokenizer.chat_template = "{{ messages }}"  # not of the vocabulary
    assert vocabulary_digest(tiny_tokenizer) == before
    tiny_tokenizer.add_tokens(["zyzzyva"])
    assert vocabulary_digest(tiny_tokenizer) != before


def test_tensors_are_told_apart_by_every_bit_and_known_in_any_order(monkeypatch):
    first, second = torch.rand(300, 400), torch.rand(5)
    digest = tensors_digest({"a": first, "b": second})
    assert tensors_digest({"b": second, "a": first.clone().requires_grad_()}) == digest
    assert tensors_digest({"a": second, "b": first}) != digest
    assert tensors_digest({"a": first, "c": second}) != digest
    assert tensors_digest({"a": first.reshape(400, 300), "b": second}) != digest
    other = first.clone()
    other[-1, -1] = torch.nextafter(other[-1, -1], torch.tensor(9.0))
    assert tensors_digest({"a": other, "b": second}) != digest
    assert tensors_digest({"a": first[0, 0]}) != tensors_digest({"a": first[0, 1]})  # numbers have bits too
    monkeypatch.setattr(identity, "_AT_ONCE", 1)
    assert tensors_digest({"a": first, "b": second}) == digest
