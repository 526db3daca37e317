"""Statistics collected the long way round, and from texts that break off."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel

from corsa_plugins.alphaedit.statistics.collect import collect_statistics
from corsa_plugins.model.architecture import find_architecture
from tests.conftest import DOCUMENTS


def tiny_gpt2(vocabulary: int) -> PreTrainedModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=vocabulary, n_embd=16, n_layer=3, n_head=2, n_positions=64, initializer_range=0.3)
    return AutoModelForCausalLM.from_config(config)


def plain_keys(model: PreTrainedModel, rows: list[list[int]], layer: int) -> Tensor:
    """The keys (d, n) of all rows, one row at a time, through the whole model."""
    captured: list[Tensor] = []
    down = find_architecture(model).ffn(layer).down.module
    hook = down.register_forward_pre_hook(lambda _, args: captured.append(args[0][0].double()))
    try:
        with torch.no_grad():
            for row in rows:
                model(torch.tensor([row]))
    finally:
        hook.remove()
    return torch.cat(captured).mT


def plain_rows(tokenizer, texts, length, pack, n_tokens) -> list[list[int]]:
    """The documented rows, written down the long way round."""
    if pack:
        stream = [token for text in texts for token in [*tokenizer.encode(text)[1:], tokenizer.eos_token_id]]
        pieces = [stream[at : at + length - 1] for at in range(0, len(stream), length - 1)]
    else:
        documents = [tokenizer.encode(text)[1:] for text in texts]
        pieces = [ids[at : at + length - 1] for ids in documents for at in range(0, len(ids), length - 1)]
    rows = [[tokenizer.bos_token_id, *piece] for piece in pieces]
    while sum(map(len, rows)) > n_tokens:
        over = sum(map(len, rows)) - n_tokens
        rows[-1] = rows[-1][:-over] if over < len(rows[-1]) else []
        rows = [row for row in rows if row]
    return rows


def fails_after(n: int, error: BaseException):
    yield from DOCUMENTS[:n]
    raise error


def collect_into(folder: Path, model, tokenizer, texts=DOCUMENTS, **changes):
    few = {"n_tokens": 1200, "length": 24, "batch_size": 3, "sample_size": 60, "checkpoint_seconds": 1e9}
    settings = {**few, **changes}
    return collect_statistics(model, tokenizer, texts, settings.pop("layers", (0, 1)), out=folder, **settings)
