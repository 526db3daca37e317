"""The page of a protocol holds the numbers of its results, by moment, and every answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from corsa_plugins.bench.evaluation import Interval
from corsa_plugins.bench.protocols import Method, ProtocolResult, UpdatePlan, run_protocol
from corsa_plugins.bench.protocols.plan import UpdateSet
from corsa_plugins.errors import SettingError
from corsa_plugins.report.protocol_page import MOST_TABLES, comparisons, write_protocol_page
from tests.support.small_plans import PLANS, made_up_result


@pytest.fixture
def results(
    plan: UpdatePlan, make: Callable[[str], Method], taught_llama: Any, tiny_tokenizer: PreTrainedTokenizerFast
) -> list[ProtocolResult]:
    return [
        run_protocol(make(name), plan, taught_llama, tiny_tokenizer, progress=False, max_new_tokens=6)
        for name in ("alphaedit+", "rsft")
    ]


def _words(path: Path) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", path.read_text(encoding="utf-8")))


def _shown(interval: Interval) -> str:
    return f"{100 * interval.mean:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def test_the_numbers_are_those_of_the_results_and_no_moment_is_left_out(
    results: list[ProtocolResult], tmp_path: Path
) -> None:
    path = write_protocol_page(tmp_path / "report.html", results, asked={"command": "corsa protocol"})
    words = _words(path)
    for result in results:
        summary = result.summary()
        for update in summary.updates:
            for metrics in (update.before, update.right_after, update.untouched):
                for name in {"efficacy", "generality", "old_retention", "untouched"} & set(metrics):
                    assert _shown(metrics[name]) in words
        if len(summary.updates) > 1:
            for metrics in (summary.right_after, summary.at_the_end, summary.later):
                for name in {"efficacy", "generality", "forgetting", "old_activation"} & set(metrics):
                    assert _shown(metrics[name]) in words
        for evaluation in result.evaluations.values():
            for record in evaluation.records:
                for answer in (record.edit, *record.paraphrases):
                    assert answer.prompt in words
    assert "During training" in words, "R-SFT keeps the history of its training"
    assert "Conflicts" in words, "AlphaEdit+ reports those of each request"


def test_every_number_is_of_the_moment_that_its_table_is_of() -> None:
    results = [made_up_result("one", 1), made_up_result("other", 5)]
    tables = {table.heading: table for table in comparisons(results)}
    found = {
        (heading, column.title.partition(",")[0]): column.means
        for heading, table in tables.items()
        for column in table.columns
    }

    def shares(moment: int, name: str, metric: str) -> list[float]:
        return [result.at(moment, name).summary()[metric].mean for result in results]

    wanted = {
        "Efficacy": "efficacy",
        "Generality": "generality",
        "Old-knowledge retention": "old_retention",
    }
    for number in (1, 2):
        heading = f"Right after update {number}: round {number}, 24 requests"
        assert tables[heading].models == ["before", "one", "other"]
        for title, metric in wanted.items():
            before = shares(0, f"round {number}", metric)[:1]
            means = [mean.mean for mean in found[heading, title]]
            assert means == before + shares(number, f"round {number}", metric)
            assert len(set(means)) == 3, "the made-up shares differ"
        untouched = [mean.mean for mean in found[heading, "Untouched facts"]]
        assert untouched == shares(0, "untouched", "untouched")[:1] + shares(number, "untouched", "untouched")
    right_after, at_the_end = list(tables)[2:]
    for title, metric in list(wanted.items())[:2]:
        ended = [(a + b) / 2 for a, b in zip(shares(2, "round 1", metric), shares(2, "round 2", metric), strict=True)]
        began = [(a + b) / 2 for a, b in zip(shares(1, "round 1", metric), shares(2, "round 2", metric), strict=True)]
        assert [mean.mean for mean in found[right_after, title]] == pytest.approx(began)
        assert [mean.mean for mean in found[at_the_end, title]] == pytest.approx(ended)
    lost = [a - b for a, b in zip(shares(1, "round 1", "generality"), shares(2, "round 1", "generality"), strict=True)]
    assert [mean.mean for mean in found[at_the_end, "Forgetting"]] == pytest.approx(lost)
    assert [mean.mean for mean in found[at_the_end, "Untouched facts"]] == shares(2, "untouched", "untouched")


@pytest.mark.parametrize("plan", ["temporal stream"], indirect=True)
def test_a_column_of_answers_for_each_method_and_moment(results: list[ProtocolResult], tmp_path: Path) -> None:
    source = write_protocol_page(tmp_path / "page.html", results, asked={}).read_text(encoding="utf-8")
    (chooser,) = re.findall(r'<select class="by".*?</select>', source)
    labels = [f"{name}, {when}" for when in ("right after", "at the end") for name in ("AlphaEdit+", "R-SFT")]
    assert re.findall(r">([^<]+)</option>", chooser) == ["before", *labels]
    by_column = [kinds.split() for kinds in re.findall(r'<li data-is="([^"]*)"', source)]
    last = len(results[0].plan.sets)
    for place, (result, when) in enumerate(((r, when) for when in ("right", "end") for r in results), start=1):
        asked = [
            record
            for number, one in enumerate(result.plan.sets, start=1)
            for record in result.at(number if when == "right" else last, one.name).records
        ]
        missed = sum(not record.edit.says_new for record in asked)
        assert sum(f"{place}.missed" in kinds for kinds in by_column) == missed, "of all updates, at any moment"
    items = source.count("<li ")
    assert items == sum(len(one.requests) for one in results[0].plan.sets) + len(results[0].plan.untouched)


@pytest.mark.parametrize("plan", ["single update"], indirect=True)
def test_results_that_do_not_belong_together_are_refused(results: list[ProtocolResult], tmp_path: Path) -> None:
    other = replace(results[1], plan=PLANS["sequential batches"]())
    for wrong, message in (
        ([], "0 results"),
        ([results[0], other], "of the same plan"),
        ([results[0], results[0]], "called alike"),
    ):
        with pytest.raises(SettingError, match=message):
            write_protocol_page(tmp_path / "page.html", wrong, asked={})
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("plan", ["single update"], indirect=True)
def test_a_long_run_has_tables_over_all_updates_alone(results: list[ProtocolResult]) -> None:
    (one,) = results[0].plan.sets
    count = MOST_TABLES + 1
    plan = UpdatePlan(
        "long",
        tuple(UpdateSet(f"part {n}", one.requests) for n in range(count)),
        ((), *((n,) for n in range(1, count)), tuple(range(1, count + 1))),
    )
    known = results[0].at(1, one.name)
    evaluations = {(m, plan.sets[n - 1].name): known for m, numbers in enumerate(plan.evaluated) for n in numbers}
    long = ProtocolResult(plan, "any", evaluations, (0.0,) * count)
    assert [table.heading for table in comparisons([long])] == [
        "All updates, each right after it",
        "After all updates, the requests of all that still hold",
    ]
