"""Every evaluation of a run, and the summary that follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import TYPE_CHECKING, Any

from corsa_plugins.bench.evaluation import Evaluation, Interval, pair_metrics
from corsa_plugins.bench.protocols.plan import UNTOUCHED, UpdatePlan
from corsa_plugins.bench.protocols.tables import Row, add_rows

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["ProtocolResult", "ProtocolSummary", "UpdateSummary", "comparison_table"]

Metrics = Mapping[str, Interval]


@dataclass(frozen=True)
class UpdateSummary:
    """What became of one update's requests. Metrics by name, each a mean with its 95 % interval.

    Attributes:
        name: Of the update.
        requests: How many.
        standing: How many still hold at the end: no later update gave their prompt another target.
        before: All metrics of its requests before the first update.
        right_after: All metrics of its requests right after it: among them ``efficacy``, ``generality``,
            ``old_retention`` (old-knowledge retention) and ``specificity``.
        at_the_end: The same of its standing requests after the last update.
        later: Of its standing requests, from right after it to the end: ``forgetting`` (generality lost),
            ``forgetting_edit_prompt`` (efficacy lost) and ``old_activation`` (old answers that came back). Empty for
            the last update, which nothing followed, and where no request stands.
        untouched: Metrics of the untouched facts right after it.
    """

    name: str
    requests: int
    standing: int
    before: Metrics
    right_after: Metrics
    at_the_end: Metrics
    later: Metrics
    untouched: Metrics


@dataclass(frozen=True)
class ProtocolSummary:
    """What became of a run.

    Attributes:
        updates: One for each update, in order.
        right_after: Metrics over the requests of all updates, each right after its own; ``generality`` among them
            is the update efficacy of the sequence (CoRSA paper, 4.3).
        at_the_end: Metrics over all standing requests after the last update.
        later: Forgetting and old-knowledge activation over the standing requests of all updates but the last.
        untouched_before: Metrics of the untouched facts before the first update.
    """

    updates: tuple[UpdateSummary, ...]
    right_after: Metrics
    at_the_end: Metrics
    later: Metrics
    untouched_before: Metrics

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; a value that is no number is written as text."""
        return {
            "updates": [{key: _plain(value) for key, value in vars(update).items()} for update in self.updates],
            **{key: _plain(value) for key, value in vars(self).items() if key != "updates"},
        }


@dataclass(frozen=True)
class ProtocolResult:
    """A finished run.

    Attributes:
        plan: What was done.
        method: By which method: its name.
        evaluations: By moment (0: before the first update; t: right after update t) and name of the set
            (``"untouched"`` for the untouched facts).
        seconds: What each update took, without the looks of its history.
        measured: What the run's own measures gave, by moment (0 and the last, or the last alone) and name.
        histories: By number of the update (from 1), where its method trains: the log-probabilities of new and old
            answers over the training, as records for :func:`corsa_plugins.report.sections.history.history_points`.
        reports: By number of the update, where its method gives one: what became of each request, as plain data
            (:meth:`corsa_plugins.alphaedit.EditReport.as_dict`).
    """

    plan: UpdatePlan
    method: str
    evaluations: Mapping[tuple[int, str], Evaluation]
    seconds: tuple[float, ...]
    measured: Mapping[tuple[int, str], Any] = field(default_factory=dict)
    histories: Mapping[int, list[dict[str, Any]]] = field(default_factory=dict)
    reports: Mapping[int, dict[str, Any]] = field(default_factory=dict)

    def at(self, moment: int, name: str) -> Evaluation:
        """One evaluation.

        Raises:
            KeyError: This set was not evaluated at this moment.
        """
        try:
            return self.evaluations[moment, name]
        except KeyError:
            raise KeyError(f"{name!r} was not evaluated at moment {moment}") from None

    def summary(self) -> ProtocolSummary:
        """Efficacy, generality, old-knowledge retention and activation, forgetting and specificity, by update."""
        last = len(self.plan.sets)
        updates = tuple(self._update(number) for number in range(1, last + 1))
        numbers = range(1, last + 1)
        ended = [self._standing(number, last) for number in numbers]
        return ProtocolSummary(
            updates=updates,
            right_after=_pooled([self.at(number, self._name(number)) for number in numbers]).summary(),
            at_the_end=_pooled(ended).summary(),
            later=_later(_pooled([self._standing(number, number) for number in numbers[:-1]]), _pooled(ended[:-1])),
            untouched_before=self._untouched(0),
        )

    def table(self) -> Table:
        """The summary for the terminal: a row for each update, and one for all of them together; in percent."""
        from rich.table import Table

        summary = self.summary()
        rows = [Row("before", untouched=summary.untouched_before)] if summary.untouched_before else []
        for update in summary.updates:
            name = f"{update.name} ({update.requests})"
            rows.append(Row(name, update.right_after, update.untouched, update.at_the_end, update.later))
        if len(summary.updates) > 1:
            rows.append(Row("all", summary.right_after, {}, summary.at_the_end, summary.later))
        title = f"{self.method}: {self.plan.name} (percent, with 95 % intervals over requests)"
        return add_rows(Table("update", title=title), rows)

    # --- parts -------------------------------------------------------------------------------------------------------

    def _name(self, number: int) -> str:
        return self.plan.sets[number - 1].name

    def _standing(self, number: int, moment: int) -> Evaluation:
        """An update's requests that hold to the end, as they were evaluated at a moment."""
        evaluation = self.at(moment, self._name(number))
        return replace(evaluation, records=tuple(compress(evaluation.records, self.plan.standing(number))))

    def _untouched(self, moment: int) -> Metrics:
        return self.at(moment, UNTOUCHED).summary() if self.plan.untouched else {}

    def _update(self, number: int) -> UpdateSummary:
        last = len(self.plan.sets)
        name = self._name(number)
        then, now = self._standing(number, number), self._standing(number, last)
        before = self.evaluations.get((0, name))
        return UpdateSummary(
            name=name,
            requests=len(self.plan.sets[number - 1].requests),
            standing=sum(self.plan.standing(number)),
            before=before.summary() if before else {},
            right_after=self.at(number, name).summary(),
            at_the_end=now.summary(),
            later=_later(then, now) if number < last else {},
            untouched=self._untouched(number),
        )


def _pooled(evaluations: Sequence[Evaluation]) -> Evaluation:
    """The requests of several sets as those of one; of each set at the moment it is given for."""
    settings = evaluations[0].settings if evaluations else None
    return Evaluation("", tuple(record for evaluation in evaluations for record in evaluation.records), (), settings)


def _later(then: Evaluation, now: Evaluation) -> Metrics:
    return pair_metrics(then, now, later=True) if then.records else {}


def _plain(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {
        name: {key: number if number - number == 0 else str(number) for key, number in interval._asdict().items()}
        for name, interval in value.items()
    }


def comparison_table(results: Sequence[ProtocolResult]) -> Table:
    """One protocol, several methods: a row each, over the requests of all updates; in percent.

    ``generality`` is the update efficacy of papers/corsa.md, Tables 2 and 3; the untouched facts are those of after the
    last update.
    """
    from rich.table import Table

    plans = ", ".join(dict.fromkeys(result.plan.name for result in results))
    table = Table("method", title=f"{plans} (percent, with 95 % intervals over requests)")
    return add_rows(table, [_row(result.method, result.summary()) for result in results])


def _row(name: str, summary: ProtocolSummary) -> Row:
    last = summary.updates[-1].untouched
    return Row(name, summary.right_after, {}, summary.at_the_end, summary.later, last)
