"""`corsa merge-adapters`: PEFT's combination, checked against the weights, and what each adapter forgot."""

from __future__ import annotations

import copy
import json

import peft
import pytest
import torch

from corsa_plugins.bench.evaluation import evaluate, load_evaluation
from corsa_plugins.data.reading import write_requests
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import CorsaError
from mergekit_ext.adapters import combine_adapters, merge_adapters

REQUESTS = {
    "a": [EditRequest(prompt="The capital of France is", target_new="Paris", paraphrases=["France? Its capital is"])],
    "b": [EditRequest(prompt="The capital of Italy is", target_new="Oslo", target_old="Rome")],
}


def adapter(base, folder, seed, **settings):
    """A LoRA adapter away from its zero initialisation, saved; and the model merged with it."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(**{"r": 2, "lora_alpha": 4, "target_modules": "all-linear", **settings})
    config.init_lora_weights = False
    model = peft.get_peft_model(copy.deepcopy(base), config)
    model.save_pretrained(folder)
    return model.merge_and_unload()


@pytest.fixture
def world(tmp_path, taught_llama, tiny_tokenizer):
    taught_llama.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    base = type(taught_llama).from_pretrained(tmp_path / "base")
    merged = [
        adapter(base, tmp_path / "a", 1),
        adapter(base, tmp_path / "b", 2, r=3, lora_alpha=3, target_modules=["q_proj", "down_proj"]),
    ]
    for name, requests in REQUESTS.items():
        write_requests(tmp_path / f"{name}.jsonl", requests)
    return tmp_path, base, merged


def run(folder, weights=(0.5, 0.25), **settings):
    settings = {"device": "cpu", "progress": False, **settings}
    return merge_adapters([folder / "a", folder / "b"], weights, folder / "ab", **settings)


def weighted_sum(base, merged, weights):
    before = base.state_dict()
    return {
        name: tensor + sum(w * (model.state_dict()[name] - tensor) for w, model in zip(weights, merged, strict=True))
        for name, tensor in before.items()
    }


def test_the_merged_adapter_is_the_weighted_sum_of_the_weights(world):
    folder, base, merged = world
    result = run(folder, (0.5, -0.25))
    assert result.rank == 5
    assert result.distance < 1e-6
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), folder / "ab").merge_and_unload()
    want = weighted_sum(base, merged, (0.5, -0.25))
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, want[name], rtol=1e-5, atol=1e-5)


def test_weight_1_and_0_give_the_first_adapter(world):
    folder, base, merged = world
    run(folder, (1, 0))
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), folder / "ab").merge_and_unload()
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, merged[0].state_dict()[name], rtol=1e-5, atol=1e-5)


def test_peft_linear_is_reported_as_the_approximation_it_is(world):
    folder, base, _ = world
    adapter(base, folder / "b", 2)  # linear wants one rank
    assert run(folder, combination="linear").distance > 0.01


def test_forgetting_is_own_minus_merged(world, tiny_tokenizer):
    folder, _, merged = world
    result = run(folder, requests=list(REQUESTS.values()))
    for item, model, requests in zip(result.forgetting, merged, REQUESTS.values(), strict=True):
        own = evaluate(model.eval(), tiny_tokenizer, requests, progress=False)
        assert item.own.values("log_prob_new") == pytest.approx(own.values("log_prob_new"), abs=1e-3)
        assert item.merged.values("log_prob_new") != pytest.approx(own.values("log_prob_new"), abs=1e-3)


def test_a_damaged_adapter_does_not_pass_the_check(world):
    folder, base, _ = world
    model = peft.PeftModel.from_pretrained(copy.deepcopy(base), folder / "a", adapter_name="x")
    model.load_adapter(folder / "b", adapter_name="y")
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "lora_B.x" in n).fill_(torch.nan)
    with pytest.raises(CorsaError, match="nan away from the weighted sum"):
        combine_adapters(model, ["x", "y"], [0.5, 0.5])


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
def test_bad_settings(world, settings, message):
    before = sorted(world[0].iterdir())
    with pytest.raises(CorsaError, match=message):
        run(world[0], **settings)
    assert sorted(world[0].iterdir()) == before


def test_a_full_disk_leaves_nothing(world):
    from tests.mergekit_ext.test_merging import no_file_larger_than

    before = sorted(world[0].iterdir())
    with no_file_larger_than(10_000), pytest.raises(CorsaError, match="ab cannot be written"):
        run(world[0])
    assert sorted(world[0].iterdir()) == before


def test_bad_adapters(world):
    folder, _, _ = world
    with pytest.raises(CorsaError, match="at least two"):
        merge_adapters([folder / "a"], [1], folder / "ab")
    with pytest.raises(CorsaError, match="given twice"):
        merge_adapters([folder / "a", folder / "a"], [1, 1], folder / "ab")
    with pytest.raises(CorsaError, match="nowhere: no "):
        merge_adapters([folder / "a", folder / "nowhere"], [1, 1], folder / "ab")
    config = folder / "b" / "adapter_config.json"
    saved = json.loads(config.read_text())
    for change, message in (
        ({"base_model_name_or_path": "other"}, "do not name one base .*b: other"),
        ({"use_dora": True}, "uses DoRA"),
        ({"peft_type": "IA3"}, "of type IA3"),
    ):
        config.write_text(json.dumps({**saved, **change}))
        with pytest.raises(CorsaError, match=message):
            run(folder)


def test_the_command(world, capsys, monkeypatch):
    from corsa_plugins.cli.app import main

    folder, _, _ = world
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as exit:
        main(["merge-adapters", "a", "b", "--weights", ".5", ".5", "-o", "ab", "-r", "a.jsonl", "-r", "b.jsonl",
              "--device", "cpu", "--quiet"])  # fmt: skip
    out = capsys.readouterr().out
    assert exit.value.code == 0, out
    assert "2 adapters by cat, rank 5" in out
    assert "forgetting" in out
    assert load_evaluation(folder / "ab" / "forgetting" / "1-b" / "merged").label == "ab"
    assert (folder / "ab" / "adapter_config.json").exists()
