"""How many requests are optimised side by side follows a limit on memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.alphaedit.lookup.rows import Row, rewriting_rows
from corsa_plugins.alphaedit.values import memory
from corsa_plugins.alphaedit.values.loss import BatchLoss
from corsa_plugins.alphaedit.values.memory import held_bytes, side_by_side
from corsa_plugins.alphaedit.values.search import find_values
from corsa_plugins.model.architecture import find_architecture
from corsa_plugins.model.borrowing import frozen
from tests.support.families import CONTEXTS
from tests.support.values import KNOWN, TAUGHT

MANY = [KNOWN[0], KNOWN[2]] * 10  # as long as each other


@pytest.fixture
def rows(taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> Iterator[Sequence[Sequence[Row]]]:
    with frozen(taught_llama):
        yield rewriting_rows(taught_llama, tiny_tokenizer, MANY, CONTEXTS, "subject_last")


def test_a_batch_holds_what_the_limit_says(
    taught_llama: LlamaForCausalLM, rows: Sequence[Sequence[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = find_architecture(taught_llama)

    def held(n: int) -> int:
        return held_bytes(BatchLoss(parts, 0, rows[:n], TAUGHT))

    assert held(8) == pytest.approx(8 * held(1), rel=0.05)
    limit = int(5.5 * held(1))
    given = replace(TAUGHT, memory=limit / 2**30)
    assert side_by_side(parts, 0, rows, given, "blocks and tokens") == 5
    assert side_by_side(parts, 0, rows, replace(given, batch_size=3), "blocks and tokens") == 3
    assert side_by_side(parts, 0, rows, replace(given, memory=1e-9), "blocks and tokens") == 1
    assert side_by_side(parts, 0, rows, TAUGHT, "blocks and tokens") == len(rows)  # the least is plenty for this model
    monkeypatch.setattr(memory, "LEAST", 1)
    size = side_by_side(parts, 0, rows, TAUGHT, "blocks and tokens")
    whole = held_bytes(BatchLoss(parts, 0, rows[:1], TAUGHT, "nothing"))
    assert size == max(1, whole // held(1)) < len(rows)


def test_weights_are_no_activations(taught_llama: LlamaForCausalLM, rows: Sequence[Sequence[Row]]) -> None:
    loss = BatchLoss(find_architecture(taught_llama), 1, rows[:1], TAUGHT)
    assert loss.kept_bytes < held_bytes(loss) < sum(p.nbytes for p in taught_llama.model.layers.parameters())


def test_the_limit_changes_nothing_in_the_vectors(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    taught_llama.double()
    batches: list[int] = []
    taught_llama.model.layers[1].register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    few, all_of_them = (
        find_values(taught_llama, tiny_tokenizer, KNOWN, 0, CONTEXTS, replace(TAUGHT, memory=memory))
        for memory in (1e-9, 1.0)
    )
    assert torch.allclose(few.vectors, all_of_them.vectors, rtol=1e-6)
    assert len(CONTEXTS) + 1 in batches
    assert 3 * (len(CONTEXTS) + 1) in batches
