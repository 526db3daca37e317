"""One more metric is one value: what shows metrics has it, wherever it comes from."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from corsa_plugins.bench.evaluation import (
    METRICS,
    Evaluation,
    change_table,
    compare,
    pair_metrics,
    save_evaluation,
    summary_table,
)
from corsa_plugins.bench.protocols import comparison_table
from corsa_plugins.report.page import Report, page
from corsa_plugins.report.protocol_page import comparisons
from tests.support.packages import write_package
from tests.support.small_plans import made_up_result
from tests.support.verdicts import NEW, OLD, evaluation

FILE = """
from corsa_plugins.bench.evaluation.metrics import Metric, Moments, Of, Shown

brevity = Metric(
    name="brevity", title="Brevity", definition="the output to the edit prompt has at most one word",
    source="Polonius, 1603", value=lambda record: len(record.edit.output.split()) <= 1, shown=Shown.COMPARED,
)
growth = Metric(
    name="growth", title="Growth", definition="words that the output to the edit prompt has gained",
    source="Polonius, 1603", moments=Moments.LATER, better=-1, unit="words",
    value=lambda then, now, whole: len(now.edit.output.split()) - len(then.edit.output.split()),
)
"""
LINES = "[corsa_plugins.metrics]\nbrevity = corsa_test_metrics:brevity\ngrowth = corsa_test_metrics:growth\n"


@pytest.fixture(autouse=True)
def installed(tmp_path: Path) -> Iterator[None]:
    write_package(tmp_path / "site", "corsa_test_metrics", FILE, LINES)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path / "site")
        METRICS.refresh()
        yield
    METRICS.refresh()
    sys.modules.pop("corsa_test_metrics", None)


@pytest.fixture
def two() -> tuple[Evaluation, Evaluation]:
    before, after = evaluation([[OLD], [OLD]], label="before"), evaluation([[NEW], [NEW]], label="after")
    wordy = [
        record.model_copy(update={"edit": record.edit.model_copy(update={"output": output})})
        for record, output in zip(before.records, ("Rome of course", "Rome"), strict=True)
    ]
    return Evaluation("before", tuple(wordy)), after


def printed(table: Table) -> str:
    text = io.StringIO()
    Console(width=200, file=text).print(table)
    return text.getvalue()


def test_it_is_measured_and_compared(two: tuple[Evaluation, Evaluation]) -> None:
    before, after = two
    assert before.values("brevity") == [0.0, 1.0]
    assert before.summary()["brevity"].mean == 0.5
    assert compare(before, after)["brevity"].difference.mean == 0.5
    assert pair_metrics(before, after, later=True)["growth"].mean == -2.0
    assert "growth" not in pair_metrics(before, after)


def test_it_is_in_the_files(two: tuple[Evaluation, Evaluation], tmp_path: Path) -> None:
    before, after = two
    summary = json.loads(save_evaluation(after, tmp_path, baseline=before, later=True).read_text())
    assert summary["metrics"]["brevity"]["mean"] == 1.0
    assert summary["metrics"]["brevity"]["definition"].endswith("at most one word (Polonius, 1603)")
    assert summary["change"]["brevity"]["mean"] == 0.5
    assert summary["two_moments"]["growth"]["mean"] == -2.0


def test_it_is_in_the_tables(two: tuple[Evaluation, Evaluation]) -> None:
    assert "Brevity, %" in printed(summary_table(two))
    changes = printed(change_table(*two, later=True))
    assert "Brevity, %" in changes
    assert "Growth, words" in changes
    assert "-2.00" in changes


def test_it_is_where_methods_are_compared() -> None:
    results = [made_up_result("one", 1), made_up_result("other", 5)]
    for table in (results[0].table(), comparison_table(results)):
        assert "brevity" in printed(table)
    titles = [column.title for table in comparisons(results)[:2] for column in table.columns]
    assert titles.count("Brevity, %") == 2


def test_it_is_on_the_page_with_its_definition(two: tuple[Evaluation, Evaluation]) -> None:
    html = page(Report("t", two, later=True))
    assert "Brevity, %" in html
    assert "at most one word (Polonius, 1603)" in html
    assert "words that the output to the edit prompt has gained (Polonius, 1603)" in html
