"""A data set of invented facts and a trainer on it."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")

import datasets
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from trl_ext import CoRSAConfig, CoRSATrainer

datasets.disable_progress_bars()

LANDS = {"Avaria": ("Oslo", "Rome"), "Belmark": ("Nordlys city", "Paris"), "Corvia": ("Madrid", "New York City"),
         "Dunmere": ("Rome now", "St. Louis"), "Elland": ("Paris", "Oslo town"), "Farholt": ("St. Louis", "Madrid"),
         "Garland": ("Buenos Aires", "Rome"), "Hollin": ("Kuala Lumpur", "Oslo")}  # fmt: skip


def preference_rows(conversational: bool = False) -> list[dict[str, Any]]:
    rows = []
    for land, (new, old) in LANDS.items():
        prompt = f"The capital of {land} is"
        if conversational:
            rows.append(
                {
                    "prompt": [{"role": "user", "content": prompt}],
                    "chosen": [{"role": "assistant", "content": new}],
                    "rejected": [{"role": "assistant", "content": old}],
                }
            )
        else:
            rows.append({"prompt": prompt, "chosen": f" {new}", "rejected": f" {old}"})
    return rows


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings})


def trained_adapter(model: LlamaForCausalLM, **settings: Any) -> PeftModel:
    """An adapter that is not at its zero initialisation, as after an earlier update."""
    torch.manual_seed(0)
    return get_peft_model(model, lora(init_lora_weights=False, **settings))


def flat(parameters: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten().double() for p in parameters])


MakeTrainer = Callable[..., CoRSATrainer]


@pytest.fixture
def dataset() -> Dataset:
    return Dataset.from_list(preference_rows())


@pytest.fixture
def make_trainer(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, dataset: Dataset, tmp_path: Path
) -> MakeTrainer:
    """A trainer on the CPU, in float32 and in the data set's order unless told otherwise.

    ``model``, ``train_dataset``, ``eval_dataset``, ``callbacks`` and ``peft_config`` go to the trainer, everything else
    to its configuration. A model that is not given is a fresh copy of the tiny Llama.
    """

    def make(**settings: Any) -> CoRSATrainer:
        ours = {"train_dataset": dataset, "processing_class": tiny_tokenizer, "peft_config": None}
        ours |= {k: settings.pop(k) for k in list(settings) if k in _TRAINER_ARGUMENTS}
        ours.setdefault("model", copy.deepcopy(tiny_llama))
        if ours["peft_config"] is None and not isinstance(ours["model"], PeftModel):
            ours["peft_config"] = lora()
        config = {
            "output_dir": str(tmp_path / "out"),
            "use_cpu": True,
            "bf16": False,
            "report_to": "none",
            "disable_tqdm": True,
            "gradient_checkpointing": False,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_steps": 2,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "train_sampling_strategy": "sequential",
            "logging_steps": 1,
            "save_strategy": "no",
        } | settings
        return CoRSATrainer(args=CoRSAConfig(**config), **ours)

    return make


_TRAINER_ARGUMENTS = {
    "model",
    "ref_model",
    "train_dataset",
    "eval_dataset",
    "callbacks",
    "peft_config",
    "processing_class",
    "optimizers",
    "compute_metrics",
    "kept",
}


@pytest.fixture
def half_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, dict[str, str]], None]]:
    """Puts a package of the given files where it is found before any other; what was imported of it comes back."""
    before = dict(sys.modules)
    put_there: list[str] = []

    def forget(name: str) -> None:
        for module in [module for module in sys.modules if module.partition(".")[0] == name]:
            del sys.modules[module]

    def put(name: str, content: dict[str, str]) -> None:
        folder = tmp_path / "site" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in content.items():
            (folder / file).write_text(text)
        monkeypatch.syspath_prepend(str(folder.parent))
        forget(name)
        put_there.append(name)

    yield put
    for name in put_there:
        forget(name)
        sys.modules.update({module: own for module, own in before.items() if module.partition(".")[0] == name})
