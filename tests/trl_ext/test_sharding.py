"""Two processes that each keep a part of the base model come to what comes of all of it in each."""

from __future__ import annotations

import copy
import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

from corsa_plugins.data.reading import write_requests
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError
from corsa_plugins.methods.history import read_history
from tests.support import several
from tests.trl_ext.conftest import trained_adapter
from tests.trl_ext.test_several_processes import logged, result, saved, weights
from trl_ext import sharding
from trl_ext.sharding import Sharding, sharding_asked_for

pytestmark = pytest.mark.skipif(
    "ignored_params" not in inspect.signature(sharding.fully_shard).parameters,
    reason="FSDP of a base without its adapter needs torch 2.7",
)

CONFIG = Path(__file__).parents[2] / "examples" / "accelerate_fsdp2.yaml"
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}

CASES = [
    # 7 pairs in batches of 2: the second process has one pair in the last round, of 5 none.
    {"name": "partial", "rows": 7, "num_train_epochs": 1, "accumulation": 2, "gradient_checkpointing": True},
    {"name": "idle", "rows": 5, "num_train_epochs": 2, "evaluated": 5, "eval_strategy": "epoch"},
    {"name": "two backwards", "rows": 5, "max_steps": 2, "one_backward": False, "precompute_ref_log_probs": True},
    {"name": "falling back", "rows": 7, "max_steps": 3, "use_weighting": True, "learned_at": 0.9},
    {"name": "without dpo", "rows": 5, "max_steps": 2, "dpo_weight": 0.0, "empty": 1},
    {"name": "unbroken", "rows": 5, "max_steps": 4, "save_strategy": "steps", "save_steps": 2},
]  # fmt: skip

REQUESTS = [
    EditRequest(prompt="The capital of France is", target_new="Oslo", target_old="Paris", subject="France"),
    EditRequest(prompt="The capital of Italy is", target_new="Madrid", subject="Italy"),
    EditRequest(prompt="The capital of Spain is", target_new="Rome", subject="Spain"),
    EditRequest(prompt="Anna Berg was born in", target_new="Rome", target_old="Oslo", subject="Anna Berg"),
    EditRequest(prompt="The capital of Japan is", target_new="Paris", target_old="Rome", subject="Japan"),
]


def train_arguments(folder: Path, output: str, **changes: Any) -> dict[str, Any]:
    settings = {
        "model_name_or_path": folder / "model", "requests": folder / "requests.jsonl", "output_dir": folder / output,
        "use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "save_strategy": "no",
        "ddp_backend": "gloo", "gradient_checkpointing": False, "num_train_epochs": 2, "learning_rate": 0.01,
        "lora_r": 4, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1,
    } | changes  # fmt: skip
    return {"arguments": [str(part) for name, value in settings.items() for part in (f"--{name}", value)]}


def test_a_sharded_base_trains_as_a_whole_one(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    layers = sum(p.numel() for n, p in tiny_llama.named_parameters() if ".layers." in n)
    variables = several.of_configuration(CONFIG)
    for one, two in whole_and_in_parts(tiny_llama, tiny_tokenizer, tmp_path, variables):
        assert one["here"] == one["all"] == two["all"]
        assert two["here"] == two["all"] - layers // 2


def whole_and_in_parts(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, variables: dict[str, str]
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """What :data:`CASES` come to in one process, and in two with the variables: the same. So does what goes on from a
    checkpoint of the latter."""
    resumed = {**CASES[-1], "name": "resumed", "resume": str(folder / "unbroken.2.out" / "checkpoint-2")}
    saved(model, tokenizer, folder, [*CASES, resumed])
    run = several.together("tests.support.several", str(folder), **variables)
    assert run.returncode == 0, run.stderr[-3000:]
    pairs = [(several.trained(folder, case, 1), result(folder, case["name"], 2)) for case in CASES]
    for case, (one, two) in zip(CASES, pairs, strict=True):
        assert one["step"] == two["step"]
        assert (weights(two) - weights(one)).norm() <= 1e-5 * weights(one).norm(), case["name"]
        for name in ("loss", "eval_loss", "facts_learned"):
            assert logged(two, name) == pytest.approx(logged(one, name), rel=1e-5), case["name"]
        one_file, two_file = (load_file(file) for file in sorted(folder.glob(f"{case['name']}.?.out/adapter/*.saf*")))
        assert {n: t.shape for n, t in one_file.items()} == {n: t.shape for n, t in two_file.items()}
    again = result(folder, "resumed", 2)
    torch.testing.assert_close(weights(again), weights(result(folder, "unbroken", 2)), rtol=0, atol=0)
    return pairs


@pytest.mark.slow
def test_a_mixture_of_experts(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 16, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 4,
             "num_experts_per_tok": 2, "max_position_embeddings": 128, "initializer_range": 0.2}  # fmt: skip
    config = Qwen3MoeConfig(vocab_size=len(tiny_tokenizer), bos_token_id=0, eos_token_id=1, pad_token_id=2, **sizes)
    case = {"name": "experts", "rows": 5, "max_steps": 2, "share_prompts": False}
    saved(Qwen3MoeForCausalLM(config), tiny_tokenizer, tmp_path, [case])
    run = several.together("tests.support.several", str(tmp_path), **FSDP)
    assert run.returncode == 0, run.stderr[-3000:]
    one, two = several.trained(tmp_path, case, 1), result(tmp_path, "experts", 2)
    assert any("experts" in name for name in two["weights"])
    assert two["here"] < two["all"]
    assert (weights(two) - weights(one)).norm() <= 1e-5 * weights(one).norm()


def test_a_run_with_everything_in_it(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    shards_come_to_what_the_whole_does(taught_llama, tiny_tokenizer, tmp_path, FSDP)


def shards_come_to_what_the_whole_does(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, variables: dict[str, str]
) -> None:
    """Two runs of `corsa train` with everything in them, on two processes with the variables and without any."""
    write_requests(folder / "requests.jsonl", REQUESTS)
    write_requests(folder / "followed.jsonl", REQUESTS[:3])
    several_looks = {"fill_target_old": True, "history_looks": 3, "learned_at": 0.9, "eval_strategy": "epoch",
                     "eval_requests": folder / "followed.jsonl", "find_learning_rate": True}  # fmt: skip
    kept = {"keep_weight": 0.5, "keep_prompts": 4, "fill_target_old": True, "bf16": True}
    earlier = {"adapter": folder / "start", "reference": "adapter"}
    trained_adapter(copy.deepcopy(model)).save_pretrained(folder / "start")
    for kind, of_kind in (("whole", {}), ("shards", variables)):
        cases = [
            train_arguments(folder, f"{kind} new", **several_looks),
            train_arguments(folder, f"{kind} next", **kept, **earlier),
        ]
        saved(model, tokenizer, folder, cases)
        run = several.together("tests.support.several", str(folder), **of_kind)
        assert run.returncode == 0, run.stderr[-3000:]
    for name in ("new", "next"):
        whole, shards = (folder / f"{kind} {name}" for kind in ("whole", "shards"))
        assert sorted(path.name for path in shards.iterdir()) == sorted(path.name for path in whole.iterdir())
        ours, theirs = (load_file(path / "adapter_model.safetensors") for path in (shards, whole))
        assert ours.keys() == theirs.keys()
        for tensor in theirs:
            torch.testing.assert_close(ours[tensor], theirs[tensor], rtol=1e-5, atol=1e-6)
        said = [json.loads((path / "report.json").read_text()) for path in (shards, whole)]
        for report in said:
            del report["effect"]["seconds"]
        assert said[0]["effect"] == said[1]["effect"]
        assert (shards / "requests.jsonl").read_text() == (whole / "requests.jsonl").read_text()
    assert said[0]["kept"] == said[1]["kept"]
    looks = [read_history(folder / f"{kind} new" / "history.json") for kind in ("shards", "whole")]
    assert [look["step"] for look in looks[0]] == [look["step"] for look in looks[1]]
    for look, expected in zip(*looks, strict=True):
        assert look["history/edit/margin"] == pytest.approx(expected["history/edit/margin"], rel=1e-4, abs=1e-4)


def test_a_process_that_dies_in_the_middle_of_a_step_ends_the_job(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """The other waits for its part of a layer, which nobody sends."""
    saved(tiny_llama, tiny_tokenizer, tmp_path, [{"name": "dying", "rows": 8, "max_steps": 500, "dies_within": 3}])
    run = several.launch("tests.support.several", str(tmp_path), timeout=240, **several.of_configuration(CONFIG))
    assert run.returncode != 0
    assert "SIGKILL" in run.stderr
    assert "'loss'" in run.stdout  # of the steps before
    assert not (tmp_path / "dying.2.json").exists()


@pytest.mark.parametrize(
    ("setting", "value", "cure"),
    [
        ("FSDP_VERSION", "1", r"Set\s+fsdp_version: 2"),
        ("FSDP_OFFLOAD_PARAMS", "true", "fsdp_offload_params: true is not supported .* add processes"),
        ("FSDP_RESHARD_AFTER_FORWARD", "false", "fsdp_reshard_after_forward: false .* Set it to true"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "fsdp_activation_checkpointing: true .* gradient_checkpointing"),
        ("FSDP_AUTO_WRAP_POLICY", "SIZE_BASED_WRAP", "fsdp_auto_wrap_policy: .* Set it to TRANSFORMER_BASED_WRAP"),
        ("FSDP_IGNORED_MODULES", ".*head", "fsdp_ignored_modules is not supported"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "parallelism_config is not supported"),
    ],
)
def test_what_cannot_be_is_refused(setting: str, value: str, cure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    args: Any = SimpleNamespace(world_size=2, fsdp_plugin_args=None)
    assert sharding_asked_for(args) is None
    for name, usual in FSDP.items():
        monkeypatch.setenv(name, usual)
    assert sharding_asked_for(args) == Sharding()
    monkeypatch.setenv(setting, value)
    with pytest.raises(SettingError, match=cure):
        sharding_asked_for(args)


def test_layers_by_name_and_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"fsdp_version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "MyLayer,MyOther")
    args: Any = SimpleNamespace(world_size=2, fsdp_plugin_args=asked)
    assert sharding_asked_for(args) == Sharding(("MyLayer", "MyOther"))
    monkeypatch.setattr(sharding, "fully_shard", lambda module, mesh: module)  # as torch 2.6 has it
    with pytest.raises(SettingError, match=r"needs torch 2\.7"):
        sharding_asked_for(args)
    args.world_size = 1
    with pytest.raises(SettingError, match="and there is one: launch several"):
        sharding_asked_for(args)


def test_a_four_bit_base(tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="a 4-bit base needs bitsandbytes: pip install bitsandbytes")
    case = {"name": "four bits", "rows": 5, "max_steps": 2, "storage": "float32"}
    saved(tiny_llama, tiny_tokenizer, tmp_path, [case, case | {"name": "bytes", "storage": "uint8"}])
    run = several.together("tests.support.several", str(tmp_path), **FSDP)
    assert (
        "FSDP cannot shard self_attn.q_proj.base_layer.weight, a Params4bit of torch.uint8: set bnb_4bit_quant"
        in run.stderr
    )
    one, two = several.trained(tmp_path, case, 1), result(tmp_path, "four bits", 2)
    assert two["here"] < two["all"] == one["all"]
    assert (weights(two) - weights(one)).norm() <= 1e-5 * weights(one).norm()
