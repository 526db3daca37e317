"""Hidden states before and after: against the model run by hand, prompt by prompt."""

from __future__ import annotations

import pytest
import torch

from corsa_plugins.bench.wild.drift import HeldOut, hidden_states
from corsa_plugins.errors import SettingError

PROMPTS = ["The capital of France is", "Anna Berg was born in", "Which city is the capital of Italy? It is", "def"]


def test_states_are_those_behind_the_last_token_of_each_prompt(taught_llama, tiny_tokenizer):
    states = hidden_states(taught_llama, tiny_tokenizer, PROMPTS, batch_size=2)
    for prompt, row in zip(PROMPTS, states, strict=True):
        ids = tiny_tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            by_hand = taught_llama(ids, output_hidden_states=True).hidden_states[1:]
        torch.testing.assert_close(row, torch.stack([state[0, -1] for state in by_hand]), atol=1e-4, rtol=1e-4)


def test_what_is_not_changed_has_not_moved_and_a_change_shows_from_its_block_on(taught_llama, tiny_tokenizer):
    held_out = HeldOut(taught_llama, tiny_tokenizer, PROMPTS)
    still = held_out.drift(taught_llama)
    assert all(block["moved"] == 0 and block["cosine"] == pytest.approx(1, abs=1e-5) for block in still["blocks"])
    assert still["plane"]["before"] == still["plane"]["after"]
    last = len(taught_llama.model.layers) - 1
    with torch.no_grad():
        taught_llama.model.layers[last].mlp.down_proj.weight.mul_(3)
    moved = held_out.drift(taught_llama)
    assert [block["moved"] > 0 for block in moved["blocks"]] == [False] * last + [True]
    before, after = held_out.before, hidden_states(taught_llama, tiny_tokenizer, PROMPTS)
    own = [float((b - a).norm() / a.norm()) for a, b in zip(before[:, last], after[:, last], strict=True)]
    assert moved["blocks"][last]["moved"] == pytest.approx(sum(own) / len(own), rel=1e-4)


def test_without_prompts_there_is_nothing_to_look_at(taught_llama, tiny_tokenizer):
    with pytest.raises(SettingError, match="untouched facts"):
        hidden_states(taught_llama, tiny_tokenizer, [])
