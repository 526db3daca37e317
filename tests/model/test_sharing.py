"""Rows that share their beginnings: each token sees what it saw in its own row, and models that cannot are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import MambaConfig, MambaForCausalLM

from corsa_plugins.model.batching import pad
from corsa_plugins.model.sharing import Sharing, share_rows
from tests.support.families import family

VOCABULARY = 97
PAIRS = [
    ([5, 6, 7, 8, 9, 10], [5, 6, 7, 11]),
    ([5, 6, 12], [5, 6, 13, 14, 15, 16, 17]),
    ([20, 21, 22, 23, 24], [20, 21, 22, 23, 24]),  # alike to the end
    ([30, 31, 32, 33], [30, 31, 32]),  # the one goes on from the other
]


def rectangle(pairs: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    return tuple(pad([row for row, _ in pairs] + [row for _, row in pairs]))  # type: ignore[return-value]


def test_every_token_sees_what_it_saw_in_its_own_row() -> None:
    ids, mask = rectangle(PAIRS)
    rows = share_rows(ids, mask)
    assert rows is not None
    width = rows.ids.shape[1]
    for index, row in enumerate([row for row, _ in PAIRS] + [row for _, row in PAIRS]):
        for at in range(len(row) - 1):
            pair, slot = divmod(int(rows.places[index, at]), width)
            assert pair == index % len(PAIRS)
            seen = rows.visible[pair, slot]
            order = rows.positions[pair][seen].argsort()
            assert rows.ids[pair][seen][order].tolist() == row[: at + 1]
            assert rows.positions[pair][seen][order].tolist() == list(range(at + 1))


def test_every_slot_sees_something_so_that_padding_is_finite() -> None:
    rows = share_rows(*rectangle(PAIRS))
    assert rows is not None
    assert bool(rows.visible.any(dim=-1).all())


def test_no_token_is_run_that_predicts_nothing_and_none_twice() -> None:
    """P + 2A tokens without the two last: here 3 + 3 + 1 - 2."""
    rows = share_rows(*rectangle(PAIRS[:1]))
    assert rows is not None
    assert rows.ids.tolist() == [[5, 6, 7, 8, 9]]


@pytest.mark.parametrize("case", ["nothing-in-common", "one-token", "padded-in-front"])
def test_what_cannot_be_shared_is_left(case: str) -> None:
    pairs = {"nothing-in-common": [([5, 6], [7, 6])], "one-token": [([5], [5, 6])]}.get(case, PAIRS)
    ids, mask = rectangle(pairs)
    if case == "padded-in-front":
        ids, mask = ids.flip(1), mask.flip(1)
    assert share_rows(ids, mask) is None


# --- Models ---

EVERYWHERE = ["gpt2", "gptj", "gpt_neox", "llama3", "qwen2", "qwen3", "phi3", "olmo2", "falcon", "gemma"]


def long_pairs() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    pairs = []
    for shared, first, second in ((23, 4, 3), (12, 2, 9), (31, 1, 6)):
        rests = torch.randint(3, VOCABULARY, (shared + first + second,), generator=draw).tolist()
        pairs.append((rests[: shared + first], rests[:shared] + rests[shared + first :]))
    return rectangle(pairs)


def both_ways(model: Any) -> tuple[Tensor, Tensor]:
    """Hidden states of every token that predicts another: in rows by themselves, and in shared rows."""
    ids, mask = long_pairs()
    told = mask[:, 1:].bool()
    rows = share_rows(ids, mask)
    assert rows is not None
    with torch.no_grad():
        plain = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1][told]
        inputs = Sharing(model).inputs(rows)
        shared = model.base_model(**inputs).last_hidden_state.flatten(0, 1)[rows.places][told]
    return plain, shared


@pytest.mark.parametrize(
    ("name", "attention"),
    [(name, way) for name in EVERYWHERE for way in ("sdpa", "eager") if (name, way) != ("gptj", "sdpa")],
)
def test_where_it_is_supported_it_is_the_same(name: str, attention: str) -> None:
    model: Any = family(name, VOCABULARY).eval()
    model.config._attn_implementation = attention
    sharing = Sharing(model)
    assert sharing.supports(40), sharing.reason
    plain, shared = both_ways(model.double())
    # Some norms and angles are float32 whatever the model's precision.
    torch.testing.assert_close(shared, plain, rtol=0, atol=2e-5 * float(plain.abs().max()))


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gemma3"])
def test_windows_are_refused_for_rows_that_they_cut_and_not_for_shorter_ones(name: str) -> None:
    model = family(name, VOCABULARY, window=30).eval()
    sharing = Sharing(model)
    assert not sharing.supports(50)
    assert "50 tokens" in str(sharing.reason)
    assert sharing.supports(25)
    assert not sharing.supports(50)
    plain, shared = both_ways(model)  # rows of up to 37 tokens: what is refused is indeed something else
    assert float((plain - shared).norm() / plain.norm()) > 1e-3
    unwindowed = Sharing(family(name, VOCABULARY, window=200).eval())
    assert unwindowed.supports(50)


@pytest.mark.parametrize("name", ["bloom", "mamba", "flash"])
def test_models_that_cannot_are_refused_with_the_reason(name: str) -> None:
    model: Any
    if name == "mamba":
        model = MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2))
    else:
        model = family("bloom" if name == "bloom" else "llama3", VOCABULARY)
    if name == "flash":
        model.config._attn_implementation = "flash_attention_2"
    sharing = Sharing(model)
    assert not sharing.supports(8)
    expected = {"bloom": "no position ids", "mamba": "attention|state", "flash": "'flash_attention_2' takes no mask"}[
        name
    ]
    with pytest.raises(AssertionError, match=expected):
        raise AssertionError(sharing.reason)


@pytest.mark.parametrize("ignored", ["attention_mask", "position_ids"])
def test_a_model_that_takes_mask_and_positions_and_does_not_heed_them_is_found_out(ignored: str) -> None:
    model: Any = family("llama3", VOCABULARY).eval()
    own = model.model.forward

    def forward(input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None, **kwargs: Any) -> Any:
        inputs = {"attention_mask": attention_mask, "position_ids": position_ids}
        if attention_mask.dim() == 4:
            inputs[ignored] = None
        return own(input_ids=input_ids, **inputs, **kwargs)

    model.model.forward = forward
    sharing = Sharing(model)
    assert not sharing.supports(16)
    assert "something else" in str(sharing.reason)


def test_more_tokens_than_positions_are_not_tried() -> None:
    model = family("gpt2", VOCABULARY)
    sharing = Sharing(model)
    assert sharing.supports(64)
    assert not sharing.supports(65)
    assert "positions" in str(sharing.reason)
    assert sharing.supports(64)


def test_a_length_is_looked_at_once_and_a_look_leaves_the_model_as_it_was() -> None:
    model = family("qwen2", VOCABULARY)
    calls: list[int] = []
    model.base_model.register_forward_hook(lambda *_: calls.append(1))
    model.train()
    state = torch.get_rng_state()
    sharing = Sharing(model)
    assert sharing.supports(20)
    once = len(calls)
    assert once > 0
    assert sharing.supports(30)
    assert sharing.supports(64)
    assert len(calls) == once
    assert sharing.supports(65)
    assert once < len(calls) <= 2 * once
    assert all(module.training for module in model.modules() if not isinstance(module, nn.ModuleList))
    assert torch.equal(torch.get_rng_state(), state)
