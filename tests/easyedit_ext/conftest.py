"""Small models, statistics of their keys, and requests as EasyEdit writes them."""

from __future__ import annotations

import os

os.environ.setdefault("TQDM_DISABLE", "1")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from corsa_plugins.alphaedit.statistics.collect import collect_statistics
from easyedit_ext.hparams import AlphaEditPlusHyperParams, RSFTHyperParams
from tests.conftest import TEXTS

LAYERS = (0, 1)

TEMPLATES = {
    "llama": {
        "rewrite_module_tmp": "model.layers.{}.mlp.down_proj",
        "layer_module_tmp": "model.layers.{}",
        "mlp_module_tmp": "model.layers.{}.mlp",
        "attn_module_tmp": "model.layers.{}.self_attn",
        "ln_f_module": "model.norm",
        "lm_head_module": "lm_head",
    },
    "gpt2": {
        "rewrite_module_tmp": "transformer.h.{}.mlp.c_proj",
        "layer_module_tmp": "transformer.h.{}",
        "mlp_module_tmp": "transformer.h.{}.mlp",
        "attn_module_tmp": "transformer.h.{}.attn",
        "ln_f_module": "transformer.ln_f",
        "lm_head_module": "lm_head",
    },
}

REQUESTS: list[dict[str, Any]] = [
    {
        "prompt": "The capital of France is",
        "target_new": "Oslo",
        "subject": "France",
        "ground_truth": "Paris",
        "rephrase_prompt": "What is the capital of France?",
        "locality": {"neighborhood": {"prompt": "The capital of Spain is", "ground_truth": "Madrid"}},
        "portability": {"one_hop": {"prompt": "Who governs France? Somebody in", "ground_truth": "Oslo"}},
    },
    {"prompt": "Anna Berg was born in", "target_new": "Rome", "subject": "Anna Berg", "ground_truth": None},
    {"prompt": "The capital of {} is", "target_new": "Madrid", "subject": "Italy", "ground_truth": "<|endoftext|>"},
]


def small_model(family: str, vocabulary: int, seed: int = 0) -> PreTrainedModel:
    """Three random blocks, without dropout."""
    torch.manual_seed(seed)
    ids = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "initializer_range": 0.2}
    config = {
        "llama": lambda: LlamaConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
            max_position_embeddings=128, **ids,
        ),
        "gpt2": lambda: GPT2Config(
            n_embd=32, n_layer=3, n_head=2, n_positions=128, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **ids
        ),
    }[family]()  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every tensor."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Names of the tensors whose bits differ."""
    return {
        name
        for name, tensor in model.state_dict().items()
        if not torch.equal(tensor.view(torch.uint8), before[name].view(torch.uint8))
    }


@pytest.fixture(params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest, tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    return small_model(request.param, len(tiny_tokenizer))


@pytest.fixture
def small(tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """One family, where it makes no difference."""
    return small_model("llama", len(tiny_tokenizer))


@pytest.fixture(scope="session")
def _collected() -> dict[str, Any]:
    return {}


@pytest.fixture
def collect(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory, _collected: dict[str, Any]
) -> Callable[[PreTrainedModel], str]:
    """A folder with statistics of a model, collected once for each."""

    def folder(model: PreTrainedModel) -> str:
        key = f"{model.config.model_type} {float(next(model.parameters()).detach().sum())}"
        if key not in _collected:
            out = tmp_path_factory.mktemp("statistics") / "s"
            collect_statistics(model, tiny_tokenizer, TEXTS, LAYERS, n_tokens=600, out=out, progress=False)
            _collected[key] = str(out)
        return _collected[key]

    return folder


@pytest.fixture
def alphaedit_hparams(
    collect: Callable[[PreTrainedModel], str], tiny_tokenizer: PreTrainedTokenizerFast
) -> Callable[..., AlphaEditPlusHyperParams]:
    """Hyper-parameters that let a small random model change."""

    def make(model: PreTrainedModel, **fields: Any) -> AlphaEditPlusHyperParams:
        settings = {
            "layers": list(LAYERS), "v_num_grad_steps": 6, "v_lr": 0.1, "nullspace_by": "share",
            "nullspace_threshold": 0.7, "L2": 0.1, "n_contexts": 1, "context_length": 4, **fields,
        }  # fmt: skip
        settings.setdefault("stats_dir", collect(model))
        return AlphaEditPlusHyperParams(
            alg_name="AlphaEditPlus", model_name=(model, tiny_tokenizer), device="cpu", **settings
        )

    return make


@pytest.fixture
def rsft_hparams(tiny_tokenizer: PreTrainedTokenizerFast) -> Callable[..., RSFTHyperParams]:
    def make(model: PreTrainedModel, **fields: Any) -> RSFTHyperParams:
        settings = {"layers": [1], "epochs": 2, "steps": 2, "learning_rate": 1e-2, **fields}
        return RSFTHyperParams(alg_name="RSFT", model_name=(model, tiny_tokenizer), device="cpu", **settings)

    return make


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(TEXTS * 3), encoding="utf-8")
    return path
