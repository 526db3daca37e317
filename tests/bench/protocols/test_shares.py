"""Runs with a share of the later updates' requests, and what they forget."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.bench.protocols import (
    Method,
    ProtocolError,
    cross_set_injection,
    run_protocol,
    single_update,
    temporal_stream,
)
from corsa_plugins.bench.protocols.shares import FORGETTING, forgetting_points, run_shares, with_share, write_forgetting
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError
from tests.fixtures.protocols import FailsOnce
from tests.support.small_plans import BORN, FRANCE, FRANCE_AGAIN, ITALY, UNTOUCHED

Make = Callable[[str], Method]
QUICK: dict[str, Any] = {"max_new_tokens": 5, "progress": False}
SPAIN = EditRequest(prompt="The capital of Spain is", target_new="Paris", target_old="Madrid", subject="Spain")


def requests(name: str, count: int) -> list[EditRequest]:
    return [EditRequest(prompt=f"{name} {i}", target_new=f"target {i}") for i in range(count)]


@given(st.lists(st.integers(1, 30), min_size=2, max_size=4), st.lists(st.floats(0.01, 1), min_size=2, max_size=2))
def test_a_share_is_the_beginning_of_every_later_update(counts: list[int], shares: list[float]) -> None:
    plan = temporal_stream([requests(f"round {n}", count) for n, count in enumerate(counts)])
    small, large = (with_share(plan, share) for share in sorted(shares))
    assert small.sets[0] == large.sets[0] == plan.sets[0]
    assert small.evaluated == plan.evaluated
    for a, b, whole in zip(small.sets[1:], large.sets[1:], plan.sets[1:], strict=True):
        assert a.requests == b.requests[: len(a.requests)]
        assert b.requests == whole.requests[: len(b.requests)]
        assert abs(len(b.requests) - max(shares) * len(whole.requests)) <= max(0.5, 1 - max(shares))
    assert with_share(plan, 1) is plan


def test_what_is_no_share_is_refused() -> None:
    plan = temporal_stream([[FRANCE], [BORN]])
    for share in (0, -0.5, 1.5, True, float("nan"), "1"):
        with pytest.raises(SettingError, match=r"share .*: it must be a number over 0"):
            with_share(plan, share)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="needs at least two updates"):
        with_share(single_update([FRANCE]), 0.5)


def test_each_share_is_the_run_of_its_plan(
    make: Make, taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Though its first update is put back instead of being made again; and points are of the same facts throughout."""
    plan = temporal_stream([[FRANCE, ITALY], [FRANCE_AGAIN, BORN, SPAIN]], untouched=UNTOUCHED)
    method = FailsOnce(make("rsft"), None)
    results = run_shares(method, plan, taught_llama, tiny_tokenizer, tmp_path, [0.3, 0.6], **QUICK)
    assert list(results) == [0.3, 0.6, 1.0]
    assert [list(made) for made in method.made] == [
        [FRANCE, ITALY], [FRANCE_AGAIN, BORN, SPAIN], [FRANCE_AGAIN], [FRANCE_AGAIN, BORN]
    ]  # fmt: skip
    for share, result in results.items():
        alone = run_protocol(make("rsft"), with_share(plan, share), taught_llama, tiny_tokenizer, **QUICK)
        assert result.evaluations == alone.evaluations

    # France is revised, so Italy alone is what can be forgotten.
    points = forgetting_points(results)
    assert [(point.share, point.method) for point in points] == [(0.3, "R-SFT"), (0.6, "R-SFT"), (1.0, "R-SFT")]
    whole = results[1.0].summary().updates[0]
    assert whole.standing == 1
    assert points[2].forgetting == whole.later["forgetting"].mean
    of_facts = forgetting_points(results, untouched=True)
    for point, fact in zip(points, of_facts, strict=True):
        result = results[point.share]
        then, now = (result.at(moment, "round 1").records[1].paraphrases for moment in (1, 2))
        assert point.forgetting == then[0].says_new - now[0].says_new  # type: ignore[operator]
        then, now = (result.at(moment, "untouched").untouched for moment in (1, 2))
        assert fact.forgetting == then[0].says_answer - now[0].says_answer  # type: ignore[operator]
        assert fact.method == "R-SFT, untouched facts"

    write_forgetting([*points, *of_facts], tmp_path / FORGETTING)
    rows = json.loads((tmp_path / FORGETTING).read_text())
    assert [row["share"] for row in rows] == [0.3, 0.6, 1.0] * 2
    assert set(rows[0]) == {"method", "share", "forgetting", "low", "high"}


def test_the_facts_are_those_of_the_whole_plan_even_if_a_share_leaves_their_revision_out(
    make: Make, taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    plan = temporal_stream([[FRANCE, ITALY], [BORN, FRANCE_AGAIN]])
    results = run_shares(make("rsft"), plan, taught_llama, tiny_tokenizer, tmp_path, [0.5], **QUICK)
    assert results[0.5].summary().updates[0].standing == 2
    spoilt = replace(  # what became of France is not looked at
        results[0.5],
        evaluations={
            **results[0.5].evaluations,
            (2, "round 1"): replace(
                results[0.5].at(2, "round 1"),
                records=(
                    _forgotten(results[0.5].at(2, "round 1").records[0]),
                    *results[0.5].at(2, "round 1").records[1:],
                ),
            ),
        },
    )
    assert forgetting_points({**results, 0.5: spoilt}) == forgetting_points(results)


def _forgotten(record: Any) -> Any:
    lost = tuple(answer.model_copy(update={"says_new": not answer.says_new}) for answer in record.paraphrases)
    return record.model_copy(update={"paraphrases": lost})


def test_stopped_shares_go_on_and_other_runs_are_refused(
    make: Make, taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    plan = cross_set_injection([FRANCE], [ITALY, BORN])
    with pytest.raises(RuntimeError, match="out of memory"):
        run_shares(FailsOnce(make("rsft"), 3), plan, taught_llama, tiny_tokenizer, tmp_path, [0.5], **QUICK)
    again = FailsOnce(make("rsft"), None)
    results = run_shares(again, plan, taught_llama, tiny_tokenizer, tmp_path, [0.5], **QUICK)
    assert [list(made) for made in again.made] == [[ITALY]]
    assert set(results) == {0.5, 1.0}
    (tmp_path / "other").mkdir()
    (tmp_path / "shares").rename(tmp_path / "other" / "shares")
    with pytest.raises(ProtocolError, match=r"0\.5 holds another run \(other seed\)"):
        run_shares(make("rsft"), plan, taught_llama, tiny_tokenizer, tmp_path / "other", [0.5], seed=1, **QUICK)
