"""What edited models go through: the rounding against its definition, half-way, further training, and what is left."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from corsa_plugins.bench.wild.survive import FurtherTraining, merged_copy, round_weights, trials
from corsa_plugins.errors import SettingError
from corsa_plugins.methods.in_context.reader import InContextModel
from corsa_plugins.methods.in_context.store import FactStore, InContextSettings
from corsa_plugins.model.architecture import find_architecture
from tests.conftest import TEXTS
from tests.model.test_architecture import build
from tests.support.mixtures import MIXTURES
from tests.support.small_plans import FRANCE


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def by_hand(weight, bits, group):
    """Round to nearest, number by number, in float64."""
    levels = 2 ** (bits - 1) - 1
    out = torch.empty_like(weight, dtype=torch.float64)
    for i, row in enumerate(weight.double()):
        for start in range(0, len(row), group):
            part = row[start : start + group]
            step = max(abs(float(value)) for value in part) / levels
            for j, value in enumerate(part):
                out[i, start + j] = round(float(value) / step) * step if step else 0.0
    return out


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_are_rounded_to_the_nearest_level_of_their_group(bits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 3), nn.LayerNorm(3))
    with torch.no_grad():
        model[0].weight[1, :4] = 0.0
    expected, bias = by_hand(model[0].weight.detach(), bits, 4), model[0].bias.clone()
    assert round_weights(model, bits, group=4) == 1
    torch.testing.assert_close(model[0].weight.double(), expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(model[0].bias, bias)
    for group in model[0].weight.split(4, dim=1):
        assert all(len(set(row.tolist())) <= 2**bits - 1 for row in group)


def test_the_head_and_the_embeddings_are_not_rounded(taught_llama):
    twin = copy.deepcopy(taught_llama)
    round_weights(twin, 4)
    before, after = weights(taught_llama), weights(twin)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not any("embed" in name or "lm_head" in name or "norm" in name for name in changed)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])  # (experts, out, in), and (experts, in, out)
def test_routed_experts_are_rounded_as_the_linear_maps_that_they_are(family):
    model = build(MIXTURES[family][0]())
    plain, expected = nn.ModuleList(), {}
    for layer in range(3):
        fused = find_architecture(model).mixture(layer).fused
        for name in (*fused.up, fused.down):
            stored = model.get_parameter(name).detach()
            maps = []
            for one in stored.mT if fused.transposed else stored:  # (out, in)
                maps.append(nn.Linear(one.shape[1], one.shape[0], bias=False))
                maps[-1].weight = nn.Parameter(one.clone())
            plain.extend(maps)
            expected[name] = maps
    before = weights(model)
    linear = sum(isinstance(part, nn.Linear) for part in model.modules()) - 1  # but for the head
    assert round_weights(plain, 4, group=4) == len(plain)
    assert round_weights(model, 4, group=4) == linear + len(plain)
    for name, maps in expected.items():
        rounded = model.get_parameter(name).detach()
        assert torch.equal(rounded.mT if fused.transposed else rounded, torch.stack([one.weight for one in maps]))
        assert not torch.equal(rounded, before[name])
    for router in MIXTURES[family][3]:
        (name,) = (name for name in before if name.endswith(f"layers.1.{router}.weight"))
        assert torch.equal(model.get_parameter(name), before[name])


def test_each_trial_gives_another_model_and_leaves_the_edited_one(taught_llama, tiny_tokenizer):
    base = weights(taught_llama)
    training = FurtherTraining(tuple(TEXTS), steps=3, batch_size=2, length=16, rank=2)
    chosen = trials(["merge", "int4", "int8", "training"], taught_llama, tiny_tokenizer, training)
    assert [trial.key for trial in chosen] == [f"training {training.key}", "int8", "int4", "merge"]
    with torch.no_grad():
        taught_llama.model.layers[0].mlp.down_proj.weight.add_(0.5)
    edited = weights(taught_llama)
    for trial in chosen:
        other = weights(trial.change(taught_llama))
        assert other.keys() == edited.keys()
        assert any(not torch.equal(other[name], edited[name]) for name in edited)
        if trial.key == "merge":
            for name in base:
                torch.testing.assert_close(other[name], (base[name] + edited[name]) / 2)
    now = weights(taught_llama)
    assert all(torch.equal(now[name], edited[name]) for name in edited)


def test_training_is_of_the_text_and_the_same_each_time(taught_llama, tiny_tokenizer):
    training = FurtherTraining(tuple(TEXTS), steps=8, batch_size=4, length=24, rank=4, learning_rate=1e-2)
    (trial,) = trials(["training"], taught_llama, tiny_tokenizer, training)
    state = torch.get_rng_state()
    first, second = trial.change(taught_llama), trial.change(taught_llama)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    ids = tiny_tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        before, after = (float(model(input_ids=ids, labels=ids).loss) for model in (taught_llama, first))
    assert after < before


def test_an_adapter_is_merged_in_the_copy_alone(taught_llama, tiny_tokenizer):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False)
    model = peft.get_peft_model(copy.deepcopy(taught_llama), config).eval()
    ids = tiny_tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    twin = merged_copy(model)
    assert not hasattr(twin, "peft_config") or not any("lora" in name for name, _ in twin.named_parameters())
    assert any("lora" in name for name, _ in model.named_parameters())
    torch.testing.assert_close(twin(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("names", "training", "message"),
    [
        (["int3"], None, "name some of training, int8, int4, merge"),
        (["training"], None, "needs --survive-text"),
    ],
)
def test_what_cannot_be_is_refused(names, training, message, taught_llama, tiny_tokenizer):
    with pytest.raises(SettingError, match=message):
        trials(names, taught_llama, tiny_tokenizer, training)


def test_quantised_weights_have_no_copy(taught_llama):
    taught_llama.config.quantization_config = {"bits": 4}
    with pytest.raises(SettingError, match="quantised"):
        merged_copy(taught_llama)


@pytest.mark.parametrize("name", ["merge", "int4", "training"])
def test_stored_edits_are_read_before_what_becomes_of_the_model(name, taught_llama, tiny_tokenizer):
    training = FurtherTraining(tuple(TEXTS), steps=3, batch_size=2, length=16, rank=2, learning_rate=1e-2)
    (trial,) = trials([name], taught_llama, tiny_tokenizer, training)
    store, before = FactStore([FRANCE], InContextSettings()), weights(taught_llama)
    ids = tiny_tokenizer(f"{FRANCE.prompt} {FRANCE.target_new}", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        found = trial.change(InContextModel(taught_llama, tiny_tokenizer, store))(ids).logits
        expected = InContextModel(trial.change(taught_llama), tiny_tokenizer, store)(ids).logits
        without = trial.change(taught_llama)(ids).logits
    assert torch.equal(found, expected)
    assert not torch.allclose(found, without)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(taught_llama).items())


@pytest.mark.parametrize("family", ["mixtral", "qwen3_5_moe"])
def test_of_a_mixture_the_experts_train_on_and_not_what_routes(family, tiny_tokenizer):
    make, experts, _, routers, _ = MIXTURES[family]
    model = build(make(vocab_size=len(tiny_tokenizer)))
    training = FurtherTraining(tuple(TEXTS), steps=2, batch_size=2, length=16, rank=2, learning_rate=1e-2)
    (trial,) = trials(["training"], model, tiny_tokenizer, training)
    before, after = weights(model), weights(trial.change(model))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(f"{experts}." in name for name in moved)
    assert any("attn" in name for name in moved)
    assert not any(f"{router}." in name for name in moved for router in routers)
