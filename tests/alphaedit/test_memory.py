"""What a long run of edits holds on to: its keys and factors, and nothing that grows beside them."""

from __future__ import annotations

import gc

import torch

from corsa_plugins.alphaedit import AlphaEditor
from corsa_plugins.data.requests import EditRequest
from tests.fixtures.alphaedit import QUICK, Bench

_ANSWERS = ("Rome", "Oslo", "Madrid")


def live_bytes() -> int:
    """Of all tensors' storages that anything holds."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def state_bytes(editor: AlphaEditor) -> int:
    """Of keys, factors and originals."""
    tensors = [
        tensor
        for batch in editor.state.batches
        for update in batch.layers.values()
        for tensor in (update.keys, update.left, update.right)
    ]
    return sum(tensor.untyped_storage().nbytes() for tensor in [*tensors, *editor.state.originals.values()])


def test_a_hundred_edits_in_turn_hold_their_keys_and_factors_and_nothing_else(llama_bench: Bench) -> None:
    editor = llama_bench.editor(QUICK, n_contexts=0, smoothing=None)
    held = []
    for count in range(120):
        request = EditRequest(
            prompt="The capital of France is", target_new=_ANSWERS[count % 3], subject="France", case_id=f"edit {count}"
        )
        editor.edit([request], answers=False)
        if count in (19, 119):
            held.append((live_bytes(), state_bytes(editor)))
    (early, early_state), (late, late_state) = held
    one_edit = 2 * 4 * (64 + 64 + 32)  # two layers; the key, and the two sides of a rank-one update, in float32
    assert late_state - early_state == 100 * one_edit
    assert late - early == late_state - early_state
