"""An adapter in front of quantised weights learns what it learns in front of the weights as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from corsa_plugins.data.preferences import to_preference_rows
from corsa_plugins.errors import SettingError
from corsa_plugins.model.loading import load_model
from corsa_plugins.model.stored import save_model
from tests.support.small_plans import BORN, FRANCE
from tests.trl_ext.methods.conftest import SETTINGS
from trl_ext import CoRSAConfig, CoRSATrainer
from trl_ext.methods import corsa

PACKAGES = {"int8": "torchao", "nf4": "bitsandbytes"}


@pytest.fixture
def folder(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A model whose maps are as wide as a block of bitsandbytes, which leaves narrower ones unpacked."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, bos_token_id=0, eos_token_id=1, pad_token_id=2,
        initializer_range=0.1,
    )  # fmt: skip
    save_model(LlamaForCausalLM(config), tiny_tokenizer, tmp_path / "full")
    return tmp_path / "full"


def loaded(folder: Path, kind: str) -> Any:
    """As users load one, and not by this package where there is another way."""
    if kind != "nf4":
        return load_model(folder, device="cpu", dtype=kind)[0]
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=four, device_map={"": "cpu"})


def moved(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> dict[str, torch.Tensor]:
    """What each B, which begins at zero, has become."""
    session = corsa(SETTINGS).start(model, tokenizer, seed=3)
    session.update([FRANCE, BORN], folder)  # which asks before it trains
    found = {name: p.detach().clone() for name, p in session.model.named_parameters() if "lora_B" in name}
    session.close()
    return found


@pytest.mark.parametrize("kind", list(PACKAGES))
def test_it_learns_in_front_of_them(
    kind: str, folder: Path, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    pytest.importorskip(PACKAGES[kind])
    plain = moved(loaded(folder, "float32"), tiny_tokenizer, tmp_path / "plain")
    quantised = moved(loaded(folder, kind), tiny_tokenizer, tmp_path / "quantised")
    first, second = (torch.cat([b.flatten() for b in found.values()]) for found in (plain, quantised))
    alike = torch.nn.functional.cosine_similarity(first, second, 0)
    assert float(alike) > 0.4  # of one step of Adam, which is mostly signs; 0.0 where no gradient comes through


def test_weights_that_were_packed_before_are_refused(folder: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    modules = pytest.importorskip("bitsandbytes.nn.modules")
    if not modules.has_avx512bf16():
        pytest.skip("bitsandbytes packs nothing for this CPU")
    model = loaded(folder, "nf4").eval()
    with torch.no_grad():
        model(torch.arange(5, 9)[None])
    with pytest.raises(SettingError, match=r"has packed the 4-bit weights of model\.layers\.0"):
        corsa(SETTINGS).start(model, tiny_tokenizer, seed=0)
    rows = Dataset.from_list(to_preference_rows([FRANCE]))
    args = CoRSAConfig(str(folder / "out"), report_to="none", **SETTINGS.training)
    with pytest.raises(SettingError, match="has packed the 4-bit weights"):
        CoRSATrainer(model, args=args, train_dataset=rows, processing_class=tiny_tokenizer)
