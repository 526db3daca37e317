"""The loss: where the target is read, and what is not run for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.alphaedit.lookup.rows import rewriting_rows
from corsa_plugins.alphaedit.values.loss import BatchLoss
from corsa_plugins.alphaedit.values.search import find_values
from corsa_plugins.model.architecture import find_architecture
from corsa_plugins.model.borrowing import frozen
from tests.support.families import CONTEXTS, REQUESTS, family
from tests.support.values import EARLY, KNOWN, TAUGHT, compare


@pytest.mark.parametrize(("layer", "loss_layer"), [(0, 1), (0, 2), (1, 2)])
def test_an_earlier_loss_layer_reads_the_target_there(
    tiny_tokenizer: PreTrainedTokenizerFast, layer: int, loss_layer: int
) -> None:
    model = family("gpt2", len(tiny_tokenizer)).double()
    settings = replace(EARLY, stop_loss=0.0)
    searched = compare(model, tiny_tokenizer, layer, replace(settings, loss_layer=loss_layer), 1e-9)
    at_the_end = find_values(model, tiny_tokenizer, REQUESTS, layer, CONTEXTS, settings)
    assert torch.allclose(searched.vectors, at_the_end.vectors) == (loss_layer == 2)


def test_blocks_and_tokens_below_are_run_once_and_requests_leave_as_they_finish(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    sizes: dict[int, list[torch.Size]] = {0: [], 1: []}
    for index, block in enumerate(taught_llama.model.layers):
        block.mlp.register_forward_pre_hook(lambda module, args, index=index: sizes[index].append(args[0].shape[:2]))
    searched = find_values(taught_llama, tiny_tokenizer, KNOWN, 0, CONTEXTS, TAUGHT)
    assert len(sizes[0]) < 8 < len(sizes[1])
    rows = [shape[0] for shape in sizes[1]]
    assert rows[-1] < max(rows)
    longest = max(len(tiny_tokenizer(CONTEXTS[1].format(request.prompt)).input_ids) for request in KNOWN)
    assert sizes[1][-1][1] < longest
    sizes[0].clear()
    find_values(taught_llama, tiny_tokenizer, KNOWN, 0, CONTEXTS, replace(TAUGHT, reuse_prefix=False))
    assert len(sizes[0]) == int(searched.steps.max()) + 2


def test_without_the_kl_term_its_prompt_is_not_run(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = family("gpt2", len(tiny_tokenizer)).double()
    settings = replace(EARLY, kl_factor=0.0)
    compare(model, tiny_tokenizer, 0, settings, 1e-9)
    rows = rewriting_rows(model, tiny_tokenizer, REQUESTS, CONTEXTS, "subject_last")
    with frozen(model):
        loss = BatchLoss(find_architecture(model), 0, rows, settings)
    assert len(loss.texts.rows) == len(REQUESTS) * len(CONTEXTS)
