"""The settings that the methods share."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.bench.protocols import run_protocol, single_update
from corsa_plugins.errors import SettingError
from tests.conftest import CHAT_TEMPLATE
from tests.support.small_plans import FRANCE
from tests.trl_ext.methods.conftest import METHODS, QUICK, SETTINGS
from trl_ext.methods import AdapterSettings, corsa, f_learning, lora_sft
from trl_ext.methods.settings import CAREFUL_SETTINGS


@pytest.mark.parametrize("name", list(METHODS))
def test_prompts_are_trained_in_the_form_they_are_asked_in(
    name: str, taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tiny_tokenizer.chat_template = CHAT_TEMPLATE
    plan, spec = single_update([FRANCE]), {"lora-sft": lora_sft, "corsa": corsa, "f-learning": f_learning}[name]

    def trained(said: bool | None, asked: bool) -> dict[str, Tensor]:
        folder, settings = tmp_path / f"{said} {asked}", replace(SETTINGS, conversational=said)
        run_protocol(spec(settings), plan, taught_llama, tiny_tokenizer, folder, chat_template=asked, **QUICK)
        described = json.loads((folder / "run.json").read_text())["method"]
        assert described["conversational"] == (asked if said is None else said)
        return load_file(folder / "updates" / "001-update" / "adapter" / "adapter_model.safetensors")

    def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
        return all(torch.equal(tensor, other[name]) for name, tensor in one.items())

    chat, plain = trained(None, True), trained(None, False)
    assert same(chat, trained(True, True))
    assert same(plain, trained(False, True)), "what the settings say is kept"
    assert not same(chat, plain)


def test_settings_that_cannot_be_are_refused() -> None:
    for rate in (-0.1, float("nan"), True, "1"):
        with pytest.raises(SettingError, match="forgetting_rate is"):
            f_learning(SETTINGS, forgetting_rate=rate)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="seed among the training settings"):
        AdapterSettings({"seed": 3})


def test_settings_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "lora.yaml"
    path.write_text("num_train_epochs: 3\nlora: {r: 8, lora_alpha: 16}\nconversational: true\nhistory_looks: 5\n")
    method = corsa(str(path))
    assert method.settings.training == {"num_train_epochs": 3}
    assert method.settings.conversational
    assert method.settings.history_looks == 5
    found: Any = method.settings.lora
    assert (found.r, found.lora_alpha, found.target_modules) == (8, 16, "all-linear")
    assert f_learning("testbed").settings.training["num_train_epochs"] == 28
    assert AdapterSettings.from_dict(json.loads(json.dumps(method.settings.as_dict()))) == method.settings
    assert method.settings.as_dict()["lora"] == {"r": 8, "lora_alpha": 16}
    for text, message in (
        ("num_train_epoch: 3", "num_train_epoch is no setting: did you mean num_train_epochs"),
        ("lora: {rank: 8}", r"lora\.rank is no setting: the settings are .*lora_alpha"),
        ("lora: 8", "lora is 8: it must be a mapping of fields of LoraConfig"),
        ("seed: 1", "seed among the training settings"),
        ("- 1", "should be a mapping"),
        ("a: [", "is not YAML"),
    ):
        path.write_text(text)
        with pytest.raises(SettingError, match=message):
            lora_sft(str(path))


def test_careful_settings_are_of_no_model() -> None:
    settings = AdapterSettings.load("careful")
    assert settings.training == CAREFUL_SETTINGS
    assert "careful" in AdapterSettings.presets()
    assert settings.training["learned_at"] > 0
    assert settings.training["keep_weight"] > 0
