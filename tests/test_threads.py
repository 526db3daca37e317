"""The same seed gives the same result on one thread and on two, to rounding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from corsa_plugins.alphaedit.statistics.collect import collect_statistics
from corsa_plugins.bench.evaluation import evaluate
from corsa_plugins.rsft import RSFTSettings, rsft
from tests.conftest import DOCUMENTS
from tests.fixtures.alphaedit import QUICK, REQUESTS, Bench
from tests.support.edited import changed

ROWS = [
    {"prompt": f"The capital of {land} is", "chosen": f" {new}", "rejected": f" {old}"}
    for land, new, old in (("Avaria", "Oslo", "Rome"), ("Corvia", "Madrid", "Paris"), ("Elland", "Paris", "Oslo"))
]
TOLERANCE = 1e-4
"""Of the largest value in a tensor: of sums whose order the number of threads decides, through a few steps."""

Result = dict[str, torch.Tensor]


def edit(bench: Bench, folder: Path) -> Result:
    model = copy.deepcopy(bench.model)
    Bench(model=model, tokenizer=bench.tokenizer, statistics=bench.statistics).editor(QUICK).edit(
        REQUESTS, answers=False
    )
    return model.state_dict()


def statistics(bench: Bench, folder: Path) -> Result:
    collected = collect_statistics(bench.model, bench.tokenizer, DOCUMENTS, (0, 1), n_tokens=4000, sample_size=16)
    layers = {layer: collected.layer(layer) for layer in (0, 1)}
    samples = {f"sample {layer}": found.sample() for layer, found in layers.items()}
    assert all(sample is not None for sample in samples.values())
    return {f"moment {layer}": found.moment() for layer, found in layers.items()} | samples


def robust(bench: Bench, folder: Path) -> Result:
    model = copy.deepcopy(bench.model)
    rsft(model, bench.tokenizer, REQUESTS, RSFTSettings(layer=1, epochs=1, steps=3, learning_rate=3e-3))
    return model.state_dict()


def training(bench: Bench, folder: Path) -> Result:
    pytest.importorskip("trl")
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model_state_dict

    from trl_ext import CoRSAConfig, CoRSATrainer

    arguments = CoRSAConfig(
        str(folder), use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, gradient_checkpointing=False,
        per_device_train_batch_size=3, gradient_accumulation_steps=1, max_steps=2, learning_rate=1e-3, seed=3,
        save_strategy="no",
    )  # fmt: skip
    torch.manual_seed(0)
    trainer = CoRSATrainer(
        copy.deepcopy(bench.model), args=arguments, train_dataset=Dataset.from_list(ROWS),
        processing_class=bench.tokenizer,
        peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip
    trainer.train()
    return get_peft_model_state_dict(trainer.model)


def evaluation(bench: Bench, folder: Path) -> Result:
    measured = evaluate(bench.model, bench.tokenizer, REQUESTS, max_new_tokens=4, progress=False)
    texts = "".join(record.edit.output for record in measured.records)
    scores = torch.tensor([record.edit.log_prob_new for record in measured.records])
    return {"log-probabilities": scores, "outputs": torch.tensor(list(texts.encode()))}


def merge(bench: Bench, folder: Path) -> Result:
    pytest.importorskip("mergekit")
    from mergekit.options import MergeOptions

    from mergekit_ext.merging import merge_recipe

    for name, model in (("base", bench.model), ("other", changed(bench.model, 1))):
        model.save_pretrained(folder / name)
        bench.tokenizer.save_pretrained(folder / name)
    recipe = {"merge_method": "scaled_pruned_delta", "base_model": str(folder / "base"),
              "models": [{"model": str(folder / "other")}], "parameters": {"weight": 0.7, "density": 0.3}}  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    merge_recipe(folder / "recipe.yaml", folder / "merged", MergeOptions(quiet=True))
    return load_file(folder / "merged" / "model.safetensors")


@pytest.mark.parametrize(
    "work", [edit, statistics, robust, training, evaluation, merge], ids=lambda work: work.__name__
)
def test_one_thread_and_two(work: Callable[[Bench, Path], Result], llama_bench: Bench, tmp_path: Path) -> None:
    results: list[dict[str, Any]] = []
    for threads in (1, 2):
        (tmp_path / str(threads)).mkdir()
        torch.set_num_threads(threads)
        try:
            results.append({k: v.clone() for k, v in work(llama_bench, tmp_path / str(threads)).items()})
        finally:
            torch.set_num_threads(1)
    first, two = results
    assert two.keys() == first.keys()
    for name, value in first.items():
        largest = float(value.abs().max()) if value.is_floating_point() else 0.0
        torch.testing.assert_close(two[name], value, rtol=0, atol=TOLERANCE * largest)
