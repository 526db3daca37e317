"""Small models, requests and comparisons for what trains the weights of a model itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from corsa_plugins.data.requests import EditRequest, RequestError
from corsa_plugins.errors import SettingError
from corsa_plugins.model.tokenization import join
from corsa_plugins.rsft import RSFTSettings, rsft

REQUESTS = [
    EditRequest(prompt="The capital of France is", target_new="Madrid", case_id="france"),
    EditRequest(prompt="Anna Berg was born in", target_new="New York City", case_id="anna"),
    EditRequest(prompt="What is the capital of Italy?", target_new="Oslo"),
]
FLOAT64 = 1e-9  # relative to the size of the update; Adam divides by gradients that nearly vanish
FLOAT32_NORMS = 1e-4  # Llama's norms and rotary angles stay float32 in a float64 model


def gpt2(vocabulary: int, n_layer: int = 3) -> PreTrainedModel:
    """It computes in float64 throughout when asked to. Its dropout is left on, for training mode."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary, n_embd=32, n_layer=n_layer, n_head=2, n_positions=64, initializer_range=0.2,
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


def family(name: str, vocabulary: int) -> PreTrainedModel:
    """Three small blocks of families whose blocks return tuples, run FFN and attention side by side, or cap logits."""
    torch.manual_seed(0)
    ids = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "initializer_range": 0.2}
    wide = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48, **ids}
    config = {
        "gpt2": lambda: GPT2Config(n_embd=32, n_layer=3, n_head=2, n_positions=64, **ids),
        "gptj": lambda: GPTJConfig(n_embd=32, n_layer=3, n_head=2, n_positions=64, rotary_dim=8, **ids),
        "gpt_neox": lambda: GPTNeoXConfig(**wide),
        "gemma2": lambda: Gemma2Config(num_key_value_heads=1, head_dim=16, sliding_window=4, **wide),
    }[name]()
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Names of the tensors whose bits differ."""
    return {
        name
        for name, tensor in model.state_dict().items()
        if not torch.equal(tensor.view(torch.uint8), before[name].view(torch.uint8))
    }


def flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.detach().flatten().double() for tensor in tensors])


def pairs(tokenizer: PreTrainedTokenizerFast, requests: list[EditRequest] = REQUESTS) -> list[tuple[list, list]]:
    return [tuple(join(tokenizer, request.prompt, request.target_new)) for request in requests]


def ran(module: nn.Module) -> list[tuple[int, ...]]:
    """Fills up with the shapes of what a module is given, whenever it really runs."""
    shapes: list[tuple[int, ...]] = []
    module.register_forward_hook(lambda module, args, output: shapes.append(tuple(args[0].shape)))
    return shapes


def refused(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, requests: Any, **settings: Any) -> str:
    before = state(model)
    with pytest.raises((SettingError, RequestError)) as caught:
        rsft(model, tokenizer, requests, RSFTSettings(**settings))
    assert not changed(model, before)
    return str(caught.value)
