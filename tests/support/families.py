"""Small models of many families for a tokenizer, from the configurations of ``tests/model/test_architecture.py``."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from corsa_plugins.data.requests import EditRequest
from tests.model.test_architecture import FAMILIES, build

NAMES = [
    "gpt2",
    "gptj",
    "gpt_neox",
    "llama2",
    "llama3",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma",
    "gemma2",
    "gemma3",
    "phi3",
    "olmo2",
    "falcon",
    "bloom",
]

LATER = [name for name in FAMILIES if name not in (*NAMES, "llama_square")]
"""Families that are built of the same parts in other ways; not every test goes through them."""

REQUESTS = [
    EditRequest(prompt="The capital of France is", target_new="Madrid", subject="France", case_id="france"),
    EditRequest(prompt="Anna Berg was born in", target_new="New York City", subject="Anna Berg", case_id="anna"),
    EditRequest(prompt="What is the capital of Italy?", target_new="Oslo", subject="Italy", case_id="italy"),
]
CONTEXTS = ("{}", "The city was Rome. {}", "You are. {}")


def family(name: str, vocabulary: int, window: int | None = 6) -> PreTrainedModel:
    """Three blocks, weights large enough for the answer to depend on them; windows of attention shorter than a text."""
    config: Any = FAMILIES[name][0]()
    config.vocab_size = vocabulary
    for deviation in ("initializer_range", "init_std"):
        if hasattr(config, deviation):
            setattr(config, deviation, 0.2)
    for other in ("vocab_size_per_layer_input",):
        if hasattr(config, other):
            setattr(config, other, vocabulary)
    if hasattr(config, "n_positions"):
        config.n_positions = 64
    if name in ("mistral", "gemma2", "gemma3"):
        config.sliding_window = window
    model: PreTrainedModel = build(config)
    return model
