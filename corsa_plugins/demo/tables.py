"""The demo's results on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from corsa_plugins.bench.evaluation import Evaluation, Interval
from corsa_plugins.bench.protocols import ProtocolResult
from corsa_plugins.bench.protocols.plan import UNTOUCHED
from corsa_plugins.model.asking import cut_answer

__all__ = ["question_table", "round_tables"]

_RIGHT_AFTER = {"efficacy": "efficacy", "generality": "generality", "old_retention": "old answers kept"}


def round_tables(results: Sequence[ProtocolResult]) -> list[Table]:
    """For each of the two moments a row for each method; percentages with their 95 % intervals."""
    return [_right_after_round_1(results), _after_round_2(results)]


def _right_after_round_1(results: Sequence[ProtocolResult]) -> Table:
    table = _table("Right after round 1 (percent, with 95 % intervals over requests)")
    _add_columns(table, (*_RIGHT_AFTER.values(), "untouched facts"))
    before = results[0].summary()
    start = before.updates[0].before
    untouched = before.untouched_before.get(UNTOUCHED)
    table.add_row("before", *(_percent(start.get(name)) for name in _RIGHT_AFTER), _percent(untouched))
    for result in results:
        first_round = result.summary().updates[0]
        cells = [_percent(first_round.right_after.get(name)) for name in _RIGHT_AFTER]
        table.add_row(result.method, *cells, _percent(first_round.untouched.get(UNTOUCHED)))
    return table


def _after_round_2(results: Sequence[ProtocolResult]) -> Table:
    table = _table("After round 2")
    _add_columns(
        table,
        (
            "generality of round 2",
            "generality of round 1",
            "old answers of round 1 that came back",
            "untouched facts",
            "time for both rounds",
        ),
    )
    for result in results:
        first_round, second_round = result.summary().updates
        table.add_row(
            result.method,
            _percent(second_round.right_after.get("generality")),
            _percent(first_round.at_the_end.get("generality")),
            _percent(first_round.later.get("old_activation")),
            _percent(second_round.untouched.get(UNTOUCHED)),
            f"{sum(result.seconds):.0f} s",
        )
    return table


def question_table(results: Sequence[ProtocolResult], count: int = 3) -> Table:
    """A few questions with the answers before and after round 1: the first of the file, whatever came of them."""
    name = results[0].plan.sets[0].name
    before = results[0].at(0, name)
    table = Table(title="Questions that no method saw, right after round 1", title_style="", show_lines=True)
    table.add_column("")
    asked = [index for index, record in enumerate(before.records) if record.paraphrases][:count]
    records = [before.records[index] for index in asked]
    forms = [turn % len(record.paraphrases) for turn, record in enumerate(records)]
    places = list(zip(asked, forms, strict=True))
    for record, form in zip(records, forms, strict=True):
        table.add_column(escape(record.paraphrases[form].prompt))
    table.add_row("new answer wanted", *(escape(record.target_new) for record in records))
    table.add_row("before", *(_answer(before, index, form) for index, form in places))
    for result in results:
        table.add_row(result.method, *(_answer(result.at(1, name), index, form) for index, form in places))
    return table


def _table(title: str) -> Table:
    table = Table(title=title, title_style="")
    table.add_column("", overflow="fold")
    return table


def _add_columns(table: Table, titles: Sequence[str]) -> None:
    for title in titles:
        table.add_column(title, justify="right", overflow="fold")


def _answer(evaluation: Evaluation, index: int, form: int) -> str:
    return escape(cut_answer(evaluation.records[index].paraphrases[form].output) or "(nothing)")


def _percent(share: Interval | None) -> str:
    return "" if share is None else f"{100 * share.mean:.1f} [{100 * share.low:.0f}, {100 * share.high:.0f}]"
