"""Weights that someone else put back or changed are recognised, wherever the state came from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from corsa_plugins.alphaedit import AlphaEditor, StateError
from tests.fixtures.alphaedit import LATER, QUICK, REQUESTS, Bench


def test_restored_weights_are_noticed(llama_bench: Bench) -> None:
    """Someone who puts the weights back has taken the edit back: the next one starts without its keys."""
    subject = llama_bench.editor()
    subject.edit(REQUESTS[:1])
    between = llama_bench.weights()
    subject.edit(REQUESTS[1:])
    llama_bench.load(between)
    report = subject.edit(LATER, name="later")
    assert [batch.name for batch in subject.state.batches] == ["1", "later"]
    assert report.requests[0].prior_conflict is not None
    subject.revert_all()
    assert not subject.state.batches


def test_weights_changed_by_others_are_refused(llama_bench: Bench) -> None:
    subject = llama_bench.editor()
    subject.edit(REQUESTS)
    with torch.no_grad():
        llama_bench.model.model.layers[1].mlp.down_proj.weight[0, 0] += 1
    changed = llama_bench.weights()
    for action in (lambda: subject.edit(LATER), lambda: subject.revert("1"), subject.revert_all):
        with pytest.raises(StateError, match=r"model\.layers\.1\.mlp\.down_proj.* something else changed them"):
            action()
    assert llama_bench.holds(changed)


def test_weights_from_before_a_revert_are_not_taken_for_others(llama_bench: Bench) -> None:
    """Batches 1 and 2 were in force then: as many as are left now, and not the same."""
    subject = llama_bench.editor(QUICK)
    subject.edit(REQUESTS[:1], answers=False)
    subject.edit(REQUESTS[1:2], answers=False)
    both = llama_bench.weights()
    subject.edit(REQUESTS[2:], answers=False)
    subject.revert("1")
    after = llama_bench.weights()
    llama_bench.load(both)
    for action in (lambda: subject.edit(LATER, answers=False), lambda: subject.revert("2"), subject.apply):
        with pytest.raises(StateError, match="something else changed them"):
            action()
    llama_bench.load(after)
    subject.revert("3")
    assert [batch.name for batch in subject.state.batches] == ["2"]


def test_applying_elsewhere_may_round_to_other_bits(llama_bench: Bench) -> None:
    """Another machine sums in another order: what was applied here is what the next edit finds here."""
    other = llama_bench.copy()
    before = other.weights()
    subject = llama_bench.editor(QUICK)
    subject.edit(REQUESTS[:1], answers=False)
    subject.edit(REQUESTS[1:], answers=False)
    elsewhere = replace(subject.state, marks=(*subject.state.marks[:-1], dict.fromkeys((0, 1), "other bits")))
    there = AlphaEditor(other.model, other.tokenizer, other.statistics, QUICK, state=elsewhere)
    there.apply()
    there.edit(LATER, answers=False)
    assert [batch.name for batch in there.state.batches] == ["1", "2", "3"]
    for name in ("1", "3", "2"):
        there.revert(name)
    assert other.holds(before)


def test_a_state_that_was_not_applied_is_forgotten_aloud(llama_bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    other = llama_bench.copy()
    subject = llama_bench.editor(QUICK)
    subject.edit(REQUESTS[:1], name="first", answers=False)
    there = AlphaEditor(other.model, other.tokenizer, other.statistics, QUICK, state=subject.state)
    there.edit(REQUESTS[1:], answers=False)
    assert [batch.name for batch in there.state.batches] == ["1"]
    (record,) = [record for record in caplog.records if "forgotten" in record.message]
    assert record.levelname == "WARNING"
    assert "first" in record.message
