"""LoRA SFT and CoRSA are the trainings that have their names."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.data.preferences import to_preference_rows
from tests.support.small_plans import BORN, FRANCE
from tests.trl_ext.methods.conftest import SETTINGS
from trl_ext import CoRSAConfig, CoRSATrainer
from trl_ext.methods import AdapterSettings, corsa, lora_sft


def test_an_update_is_the_training_that_has_its_name(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    settings = AdapterSettings(SETTINGS.training)  # with the paper's adapter, as the demo trains it
    adapters = []
    for method, own in ((lora_sft(settings), {"dpo_weight": 0.0, "sam_rho": 0.0}), (corsa(settings), {})):
        session = method.start(taught_llama, tiny_tokenizer, seed=3)
        session.update([FRANCE, BORN], tmp_path / method.name)
        session.close()
        alone = tmp_path / f"{method.name} alone"
        trainer = CoRSATrainer(
            copy.deepcopy(taught_llama),
            args=CoRSAConfig(str(alone), report_to="none", save_strategy="no", seed=3, **settings.training, **own),
            train_dataset=Dataset.from_list(to_preference_rows([FRANCE, BORN])),
            processing_class=tiny_tokenizer,
        )
        trainer.train()
        trainer.save_model()
        found, expected = (
            load_file(f / "adapter_model.safetensors") for f in (tmp_path / method.name / "adapter", alone)
        )
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)
        adapters.append(found)
    assert any(not torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])
