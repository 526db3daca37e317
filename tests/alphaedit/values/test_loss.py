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


def test_what_a_search_runs(taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """Blocks and tokens below the edited one run once; at a step the rest of those not done; no more."""
    first, second = taught_llama.model.layers
    below, above, head, back = [], [], [], []
    first.mlp.register_forward_pre_hook(lambda module, args: below.append(args[0].shape[:2]))
    second.mlp.register_forward_pre_hook(lambda module, args: above.append(args[0].shape[:2]))
    second.mlp.register_full_backward_hook(lambda module, given, got: back.append(given[0].shape[:2]))
    taught_llama.lm_head.register_forward_hook(lambda module, args, output: head.append(output.shape[:2]))
    searched = find_values(taught_llama, tiny_tokenizer, KNOWN, 0, CONTEXTS, TAUGHT)
    n_steps = int(searched.steps.max()) + 1
    assert len(below) == 5 + 2 + 2  # what can be reused, what a request holds, and then prefix and first pass
    assert len(above) == 6 + 3 + 2 + n_steps
    assert len(back) == n_steps - 1  # of the last one only the loss is looked at
    requests = rewriting_rows(taught_llama, tiny_tokenizer, KNOWN, CONTEXTS, "subject_last")
    for step, ran in enumerate(above[-n_steps:]):
        rows = [row for row, steps in zip(requests, searched.steps.tolist(), strict=True) if steps >= step]
        flat = [row for group in rows for row in group]
        assert ran == (len(flat), max(len(row.ids) - row.position for row in flat))
        assert head[step - n_steps] == (1, sum(len(row.targets) or 1 for row in flat))
    assert above[-1][0] < above[-n_steps][0]
    prefixes = {row.ids[: row.position] for group in requests for row in group}
    assert below[-2] == (len(prefixes), max(map(len, prefixes)))
    assert len(prefixes) < above[-n_steps][0]  # two of the prompts are of one form

    below.clear()
    find_values(taught_llama, tiny_tokenizer, KNOWN, 0, CONTEXTS, replace(TAUGHT, reuse_prefix=False))
    assert len(below) == 2 + 1 + n_steps


def test_without_the_kl_term_its_prompt_is_not_run(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = family("gpt2", len(tiny_tokenizer)).double()
    settings = replace(EARLY, kl_factor=0.0)
    compare(model, tiny_tokenizer, 0, settings, 1e-9)
    rows = rewriting_rows(model, tiny_tokenizer, REQUESTS, CONTEXTS, "subject_last")
    with frozen(model):
        loss = BatchLoss(find_architecture(model), 0, rows, settings)
    assert len(loss.texts.rows) == len(REQUESTS) * len(CONTEXTS)
