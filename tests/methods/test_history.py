"""R-SFT's history: a look before the training, after each epoch, and after merging."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.bench.protocols import RSFTMethod, run_protocol, temporal_stream
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.methods.history import HISTORY, AnswerLooks, HistoryError, read_history, spread, write_history
from corsa_plugins.report.sections.history import HistoryPoint, history_points
from corsa_plugins.rsft import RSFTSettings, rsft
from tests.support.small_plans import BORN, FRANCE, ITALY

QUICK: dict[str, Any] = {"max_new_tokens": 5, "progress": False}
SETTINGS = RSFTSettings(layer=1, epochs=2, steps=2, learning_rate=3e-3, loss_threshold=0)
EDIT = ("history/edit/logps/new", "history/edit/logps/old", "history/edit/margin")


@pytest.mark.parametrize("merged", [False, True])
def test_it_begins_before_the_update_and_ends_where_the_evaluation_begins(
    merged: bool, taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    settings = RSFTSettings(**{**vars(SETTINGS), **({"weight": 0.5, "density": 0.3} if merged else {})})
    plan = temporal_stream([[FRANCE, BORN], [ITALY]])
    results = [
        run_protocol(RSFTMethod("R-SFT", settings, history=kept), plan, taught_llama, tiny_tokenizer, **QUICK)
        for kept in (True, False)
    ]
    # Looking changes nothing, nor what the method is.
    assert results[0].evaluations == results[1].evaluations
    assert results[1].histories == {}
    for number, update in enumerate(plan.sets, start=1):
        records, n = results[0].histories[number], len(update.requests)
        assert [record["step"] for record in records] == [0, 2 * n, 4 * n, *([4 * n] if merged else [])]
        for record, moment in ((records[0], 0), (records[-1], number)):
            if moment == 0 and number > 1:
                continue  # the model of moment 0 has not had the update before this one
            said = [one.edit for one in results[0].at(moment, update.name).records]
            new, old = (sum(v) / n for v in zip(*((s.log_prob_new, s.log_prob_old) for s in said), strict=True))
            assert [record[key] for key in EDIT] == pytest.approx([new, old, new - old], abs=1e-4)
        assert records[-1][EDIT[0]] > records[0][EDIT[0]]
        if merged:
            assert records[-1][EDIT[0]] != records[-2][EDIT[0]]


def test_epochs_are_told_with_the_model_as_it_is(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """After the first of two epochs it is what stopping there leaves: at a constant rate, nothing else differs."""
    seen: list[tuple[int, int, torch.Tensor]] = []
    weight = taught_llama.model.layers[1].mlp.down_proj.weight
    one = RSFTSettings(**{**vars(SETTINGS), "optimizer": "sgd", "epochs": 1})
    stopped = copy.deepcopy(taught_llama)
    rsft(stopped, tiny_tokenizer, [FRANCE, BORN], one)

    def look(epochs: int, steps: int) -> None:
        assert not any(module.training for module in taught_llama.modules())
        assert not torch.is_grad_enabled()
        seen.append((epochs, steps, weight.detach().clone()))

    two = RSFTSettings(**{**vars(one), "epochs": 2})
    rsft(taught_llama, tiny_tokenizer, [FRANCE, BORN], two, on_epoch=look)
    assert [(epochs, steps) for epochs, steps, _ in seen] == [(0, 0), (1, 4), (2, 8)]
    assert torch.equal(seen[1][2], stopped.model.layers[1].mlp.down_proj.weight)
    assert torch.equal(seen[2][2], weight)


def test_paraphrases_play_no_part(taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    bare = EditRequest(**{**dict(FRANCE), "paraphrases": ()})
    other = EditRequest(**{**dict(FRANCE), "paraphrases": ("The city of France is",)})
    looks = [AnswerLooks(tiny_tokenizer, [one]).look(taught_llama, 0) for one in (FRANCE, bare, other)]
    assert all({**look, "seconds": 0} == {**looks[0], "seconds": 0} for look in looks)
    assert not any("validation" in name for name in looks[0])


def test_a_broken_model_leaves_no_number(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    with torch.no_grad():
        taught_llama.lm_head.weight.fill_(float("nan"))
    found = AnswerLooks(tiny_tokenizer, [FRANCE]).look(taught_llama, 3)
    assert set(found) == {"step", "seconds"}
    assert history_points([found]) == []


@given(st.integers(0, 300), st.integers(1, 100))
def test_a_spread_is_even_and_in_order(n: int, most: int) -> None:
    chosen = spread(range(n), most)
    assert len(chosen) == min(n, most)
    gaps = {after - before for before, after in pairwise(chosen)}
    assert all(gap >= 1 for gap in gaps)
    assert max(gaps, default=1) - min(gaps, default=1) <= 1
    assert not n or (chosen[0] == 0 and n - chosen[-1] <= max(gaps, default=n) + 1)


def test_files_and_points(tmp_path: Path) -> None:
    look = {"history/edit/logps/new": -3.0, "history/edit/logps/old": -1.0, "history/edit/margin": -2.0}
    records = [
        {"step": 0, **look, "stage": "forgetting"},
        {"step": 0, **look, "history/validation/logps/new": -5.0},
        {"step": 5, "history/edit/logps/new": -1.0},
    ]
    write_history(records, tmp_path / HISTORY)
    assert read_history(tmp_path / HISTORY) == records
    batches = [{"step": 1, "logps/new": -9.0}, {"step": 5, "train_runtime": 1.0}]
    assert history_points([*records, *batches], "A") == [
        HistoryPoint(0, -3.0, -1.0, -2.0, "A, forgetting"),
        HistoryPoint(0, -3.0, -1.0, -2.0, "A"),
        HistoryPoint(5, -1.0, None, None, "A"),
        HistoryPoint(0, -5.0, None, None, "A, other wordings"),
    ]
    assert [point.log_prob_new for point in history_points(batches)] == [-9.0]
    write_history([], tmp_path / HISTORY)
    assert read_history(tmp_path / HISTORY) == []
    for text in ("{}", "[", "[3]"):
        (tmp_path / HISTORY).write_text(text)
        with pytest.raises(HistoryError, match=r"history\.json"):
            read_history(tmp_path / HISTORY)
