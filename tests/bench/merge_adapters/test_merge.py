"""Adapters merged by PEFT's combination, checked against the weights, and what each adapter forgot."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from corsa_plugins.bench.evaluation import evaluate
from corsa_plugins.bench.merge_adapters import WeightedAdapter, merge_adapters, weighted_adapters
from corsa_plugins.errors import CorsaError
from corsa_plugins.manifest import checksums, read_manifest
from corsa_plugins.model.loading import load_model
from tests.support.disk import no_file_larger_than
from tests.support.flips import flipped_copies
from tests.support.merges import OF_ADAPTERS
from tests.support.python import FRAMEWORKS, blocked

peft = pytest.importorskip("peft")


def run(folder, weights=(0.5, 0.25), requests=(), **settings):
    settings = {"device": "cpu", "progress": False, **settings}
    adapters = weighted_adapters([folder / "a", folder / "b"], weights, requests)
    return merge_adapters(adapters, folder / "ab", **settings)


def weighted_sum(base, merged, weights):
    before = base.state_dict()
    return {
        name: tensor + sum(w * (model.state_dict()[name] - tensor) for w, model in zip(weights, merged, strict=True))
        for name, tensor in before.items()
    }


def test_the_merged_adapter_is_the_weighted_sum_of_the_weights(two_adapters):
    folder, base, merged = two_adapters.folder, two_adapters.base, two_adapters.merged
    result = run(folder, (0.5, -0.25))
    assert result.rank == 5
    assert result.distance < 1e-6
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), folder / "ab").merge_and_unload()
    want = weighted_sum(base, merged, (0.5, -0.25))
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, want[name], rtol=1e-5, atol=1e-5)
    about = read_manifest(folder / "ab").about
    assert about["combination"] == "cat"
    for noted, name, weight in zip(about["adapters"], "ab", (0.5, -0.25), strict=True):
        digests = checksums(folder / name, ["adapter_config.json", "adapter_model.safetensors"])
        assert noted == {"path": str(folder / name), "weight": weight, "sha256": digests}


def test_weight_1_and_0_give_the_first_adapter(two_adapters):
    folder, base, merged = two_adapters.folder, two_adapters.base, two_adapters.merged
    run(folder, (1, 0))
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), folder / "ab").merge_and_unload()
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, merged[0].state_dict()[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("weights", "twin"), [((0.5, -0.5), True), ((0.0, 0.0), False)])
def test_a_combination_of_which_nothing_is_left_is_warned_of(two_adapters, caplog, weights, twin):
    folder, base = two_adapters.folder, two_adapters.base
    assert run(folder).size == pytest.approx(1, abs=0.1)
    assert not caplog.records
    shutil.rmtree(folder / "ab")
    if twin:
        shutil.rmtree(folder / "b")
        shutil.copytree(folder / "a", folder / "b")
    assert run(folder, weights).size < 1e-6
    assert "ab changes nothing, or next to nothing" in caplog.text
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), folder / "ab").merge_and_unload()
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, base.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_peft_linear_is_reported_as_the_approximation_it_is(two_adapters):
    folder, base = two_adapters.folder, two_adapters.base
    two_adapters.save(base, folder / "b", 2)  # linear wants one rank
    assert run(folder, combination="linear").distance > 0.01


def test_forgetting_is_own_minus_merged(two_adapters, tiny_tokenizer):
    folder, merged = two_adapters.folder, two_adapters.merged
    result = run(folder, requests=list(OF_ADAPTERS.values()))
    for item, model, requests in zip(result.forgetting, merged, OF_ADAPTERS.values(), strict=True):
        own = evaluate(model.eval(), tiny_tokenizer, requests, progress=False)
        assert item.own.values("log_prob_new") == pytest.approx(own.values("log_prob_new"), abs=1e-3)
        assert item.merged.values("log_prob_new") != pytest.approx(own.values("log_prob_new"), abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": [1.0]}, "1 weights for 2 adapters"),
        ({"weights": [1.0, float("nan")]}, "weight is nan"),
        ({"combination": "sum"}, "combination is 'sum'"),
        ({"combination": "linear"}, "PEFT cannot combine these adapters by 'linear'"),
        ({"requests": [[]]}, "1 request files for 2 adapters"),
        ({"model": "./nowhere"}, "no such folder"),
    ],
)
def test_bad_settings(two_adapters, settings, message):
    before = sorted(two_adapters.folder.iterdir())
    with pytest.raises(CorsaError, match=message):
        run(two_adapters.folder, **settings)
    assert sorted(two_adapters.folder.iterdir()) == before


def test_a_full_disk_leaves_nothing(two_adapters):
    before = sorted(two_adapters.folder.iterdir())
    with no_file_larger_than(10_000), pytest.raises(CorsaError, match="ab cannot be written"):
        run(two_adapters.folder)
    assert sorted(two_adapters.folder.iterdir()) == before


def test_bad_adapters(two_adapters):
    folder = two_adapters.folder
    with pytest.raises(CorsaError, match="at least two"):
        merge_adapters([WeightedAdapter(folder / "a", 1)], folder / "ab")
    with pytest.raises(CorsaError, match="given twice"):
        merge_adapters([WeightedAdapter(folder / "a", 1), WeightedAdapter(folder / "a", 1)], folder / "ab")
    with pytest.raises(CorsaError, match="nowhere: no "):
        merge_adapters(weighted_adapters([folder / "a", folder / "nowhere"]), folder / "ab")
    config = folder / "b" / "adapter_config.json"
    saved = json.loads(config.read_text())
    for change, message in (
        ({"base_model_name_or_path": "other"}, "do not name one base .*b: other"),
        ({"use_dora": True}, "uses DoRA"),
        ({"peft_type": "IA3"}, "of type IA3"),
        ({"modules_to_save": ["lm_head"]}, r"b has modules_to_save=\['lm_head'\]"),
        ({"bias": "lora_only"}, "b has bias='lora_only'"),
        ({"lora_bias": True}, "b has lora_bias=True"),
        ({"trainable_token_indices": [1, 2]}, "b has trainable_token_indices"),
    ):
        config.write_text(json.dumps({**saved, **change}))
        with pytest.raises(CorsaError, match=message):
            run(folder)


def test_an_adapter_without_some_tensors_is_not_completed(two_adapters):
    file = two_adapters.folder / "b" / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name: tensor for name, tensor in tensors.items() if "lora_B" not in name}, file)
    with pytest.raises(CorsaError, match="b does not fit the base: 4 tensors are not in its file"):
        run(two_adapters.folder)
    assert not (two_adapters.folder / "ab").exists()


def test_one_flipped_bit_of_a_merged_adapter_is_noticed(two_adapters):
    run(two_adapters.folder)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        for flipped in flipped_copies(two_adapters.folder / "ab", name, 2):
            with pytest.raises(CorsaError, match=f"{name} is not the file that was written"):
                load_model(two_adapters.folder / "base", flipped, device="cpu")


def test_without_weights_they_are_equal_and_sum_to_one():
    assert [adapter.weight for adapter in weighted_adapters(["a", "b", "c", "d"])] == [0.25] * 4


def test_peft_alone_is_needed(two_adapters):
    folder = two_adapters.folder
    code = (
        "from corsa_plugins.bench.merge_adapters import merge_adapters, weighted_adapters\n"
        f"adapters = weighted_adapters([{str(folder / 'a')!r}, {str(folder / 'b')!r}])\n"
        f"try: print(merge_adapters(adapters, {str(folder / 'ab')!r}, device='cpu').rank)\n"
        "except ImportError as error: print(error)"
    )
    assert blocked(FRAMEWORKS, code).strip() == "combining adapters needs PEFT: pip install 'corsa-plugins[trl]'"
    assert blocked(FRAMEWORKS - {"peft", "accelerate"}, code).strip() == "5"  # PEFT itself needs accelerate
