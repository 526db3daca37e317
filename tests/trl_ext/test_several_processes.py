"""Two processes come to what one comes to with the same batches, and neither waits for one that has died."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.support import several

CASES = [
    # 7 pairs in batches of 2: the second process has one pair in the last round; of 5 it has none, of 2 in no round.
    {"name": "partial", "rows": 7, "num_train_epochs": 2},
    {"name": "idle", "rows": 5, "num_train_epochs": 2, "evaluated": 5, "eval_strategy": "epoch"},
    {"name": "one round", "rows": 2, "num_train_epochs": 2},
    {"name": "accumulated", "rows": 7, "max_steps": 2, "accumulation": 2, "evaluated": 3, "eval_strategy": "epoch"},
    {"name": "left over", "rows": 9, "num_train_epochs": 2, "accumulation": 2, "sam_interval": 2},
    {"name": "shared", "rows": 7, "num_train_epochs": 2, "pcgrad": False, "precompute_ref_log_probs": True},
    {"name": "zero", "rows": 7, "num_train_epochs": 1, "accumulation": 2,
     "deepspeed": {"zero_optimization": {"stage": 2}, "gradient_accumulation_steps": "auto"}},
    {"name": "without dpo", "rows": 7, "num_train_epochs": 2, "dpo_weight": 0.0, "learned_at": 0.9},
    {"name": "unbroken", "rows": 5, "max_steps": 6, "save_strategy": "steps", "save_steps": 3},
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("several")


def saved(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, cases: Any) -> None:
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "cases.json").write_text(json.dumps(cases))


def result(folder: Path, name: str, processes: int) -> dict[str, Any]:
    return json.loads((folder / f"{name}.{processes}.json").read_text())


def logged(of: dict[str, Any], name: str) -> list[float]:
    return [line[name] for line in of["log"] if name in line]


def weights(of: dict[str, Any]) -> torch.Tensor:
    return torch.cat([torch.tensor(values) for _, values in sorted(of["weights"].items())])


def test_two_processes_are_one(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    resumed = {**CASES[-1], "name": "resumed", "resume": str(folder / "unbroken.2.out" / "checkpoint-3")}
    saved(tiny_llama, tiny_tokenizer, folder, [*CASES, resumed])
    run = several.together("tests.support.several", str(folder))
    assert run.returncode == 0, run.stderr[-3000:]
    assert "taken twice" not in run.stderr
    for case in CASES:
        one, two = several.trained(folder, case, 1), result(folder, case["name"], 2)
        assert one["step"] == two["step"]
        assert (weights(two) - weights(one)).norm() <= 1e-6 * weights(one).norm(), case["name"]
        for name in ("loss", "eval_loss"):
            assert logged(two, name) == pytest.approx(logged(one, name), rel=1e-6), case["name"]
        assert len(logged(one, "eval_loss")) == (2 if "eval_strategy" in case else 0)
        assert logged(two, "facts_learned") == logged(one, "facts_learned")
        one_file, two_file = (load_file(file) for file in sorted(folder.glob(f"{case['name']}.?.out/adapter/*.saf*")))
        assert one_file.keys() == two_file.keys()
    again = result(folder, "resumed", 2)
    assert again["step"] == 6
    torch.testing.assert_close(weights(again), weights(result(folder, "unbroken", 2)), rtol=0, atol=0)


def test_a_process_that_dies_ends_the_job(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    saved(tiny_llama, tiny_tokenizer, tmp_path, [{"name": "dying", "rows": 8, "max_steps": 500, "dies": 2}])
    run = several.launch("tests.support.several", str(tmp_path))
    assert run.returncode != 0
    assert "SIGKILL" in run.stderr
    assert not (tmp_path / "dying.2.json").exists()
