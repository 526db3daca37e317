"""The demo with few edits: its tables and its page are of the results it leaves, and a second run does nothing anew."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from corsa_plugins.bench.evaluation import load_evaluation
from corsa_plugins.bench.protocols import method_names
from corsa_plugins.demo.run import Rounds, SharedStatistics, default_methods, demo_methods, in_turn, run_demo
from corsa_plugins.demo.tables import round_tables
from corsa_plugins.demo.worlds import TestbedWorld
from corsa_plugins.errors import SettingError
from corsa_plugins.methods.spec import MethodSpec
from tests.support.small_plans import made_up_result


@pytest.mark.usefixtures("quick_processes")
@pytest.mark.slow
def test_tables_and_page_show_what_the_run_left(tmp_path: Path) -> None:
    text = io.StringIO()
    chosen = ("rsft-mergekit", "alphaedit+")
    demo = run_demo(tmp_path, Rounds(3, untouched=10), methods=chosen, console=Console(file=text, width=160))
    shown = text.getvalue()
    assert shown.startswith(f"Report: {tmp_path}/report.html")
    assert [result.method for result in demo.results] == ["R-SFT, merged by mergekit", "AlphaEdit+"]
    page = demo.page.read_text(encoding="utf-8")
    for name, result in zip(("rsft-mergekit", "alphaedit-plus"), demo.results, strict=True):
        saved = load_evaluation(tmp_path / name / "evaluations" / "after-001" / "round-1")
        efficacy = saved.summary()["efficacy"]
        assert result.summary().updates[0].right_after["efficacy"] == efficacy
        cell = f"{100 * efficacy.mean:.1f} [{100 * efficacy.low:.0f}, {100 * efficacy.high:.0f}]"
        assert re.search(rf"{re.escape(result.method)}\s+│\s+{re.escape(cell)}", shown)
        assert f"{result.method}, right after" in page
    question = demo.results[0].at(0, "round 1").records[0].paraphrases[0].prompt
    assert question.split()[-2] in shown

    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model_state*") if path.is_file()}
    stamps |= {path: path.stat().st_mtime_ns for path in tmp_path.rglob("update.json")}
    again = run_demo(tmp_path, Rounds(3, untouched=10), methods=chosen, console=Console(file=io.StringIO(), width=160))
    assert again.results == demo.results
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    with pytest.raises(Exception, match="holds another run"):
        run_demo(tmp_path, Rounds(4, untouched=10), methods=chosen, console=Console(file=io.StringIO()))


def test_the_tables_are_of_the_moments_that_they_name() -> None:
    results = [made_up_result("one", 1), made_up_result("other", 5)]
    first, second = round_tables(results)

    def percent(*found: object) -> list[str]:
        return [f"{100 * one.mean:.1f}" for one in found]  # type: ignore[attr-defined]

    def cells(table: Table) -> list[list[str]]:
        columns = [list(column.cells) for column in table.columns]
        return [[str(cell).split(" ")[0] for cell in row] for row in zip(*columns, strict=True)]

    names = ("efficacy", "generality", "old_retention")
    before = results[0].summary()
    start = [before.updates[0].before[name] for name in names]
    assert cells(first)[0] == ["before", *percent(*start, before.untouched_before["untouched"])]
    for result, row, later in zip(results, cells(first)[1:], cells(second), strict=True):
        one, two = result.summary().updates
        right_after = [one.right_after[name] for name in names]
        assert row == [result.method, *percent(*right_after, one.untouched["untouched"])]
        assert later == [
            result.method,
            *percent(two.right_after["generality"], one.at_the_end["generality"]),
            *percent(one.later["old_activation"], two.untouched["untouched"]),
            "3",
        ]


def test_adapters_are_begun_first_and_methods_that_share_something_not_next_to_each_other() -> None:
    specs = demo_methods()
    begun = in_turn({name: specs[name] for name in default_methods()})
    assert sorted(begun) == sorted(default_methods())
    rest = [name for name in begun if "adapter" not in specs[name].changes]
    assert begun[-len(rest) :] == rest
    for one, other in (("alphaedit", "alphaedit+"), ("rsft", "rsft-mergekit")):
        assert rest.index(other) > rest.index(one) + 1


def test_statistics_are_collected_by_the_first_to_come_and_the_others_wait(tmp_path: Path) -> None:
    collected = []

    class SlowWorld(TestbedWorld):
        def save_statistics(self, folder: Path, specs: Sequence[MethodSpec]) -> None:
            if not folder.exists():
                collected.append([spec.name for spec in specs])
                time.sleep(0.5)
            super().save_statistics(folder, specs)

    statistics = SharedStatistics(tmp_path / "run" / "statistics", ("corsa", "alphaedit+"))
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(statistics.of, [SlowWorld(), SlowWorld()])
    assert collected == [["alphaedit+"]]
    assert one.layers == other.layers == (0,)


def test_the_methods_are_there_and_take_their_options() -> None:
    assert set(default_methods()) < set(demo_methods()) <= set(method_names())
    for spec in demo_methods().values():
        if not spec.needs_statistics:
            assert spec(settings="testbed").name == spec.title


@pytest.mark.parametrize("methods", [(), ("corsa", "corsa"), ("grace",)])
def test_methods_it_does_not_know_are_named(tmp_path: Path, methods: tuple[str, ...]) -> None:
    with pytest.raises(SettingError, match=r"name some of .*lora-sft, f-learning, corsa"):
        run_demo(tmp_path / "out", methods=methods, console=Console(file=io.StringIO()))
    assert not (tmp_path / "out").exists()


def test_what_cannot_work_is_said_before_anything_is_written(tmp_path: Path) -> None:
    most = 300  # of the people that the testbed has, and of whom 500 facts are watched
    assert [len(part.requests) for part in TestbedWorld().plan(Rounds(most)).sets] == [most] * 2
    with pytest.raises(SettingError, match=f"size {most + 1}: 2 rounds"):
        run_demo(tmp_path / "out", Rounds(most + 1), console=Console(file=io.StringIO()))
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="name a folder"):
        run_demo(tmp_path / "file", console=Console(file=io.StringIO()))
