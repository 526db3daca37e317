"""Scores of general ability for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from corsa_plugins.bench.ability.scores import Ability, compare_ability, is_stderr, stderr_of

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["ability_table"]


def ability_table(before: Ability | None, after: Ability, labels: tuple[str, str] = ("before", "after")) -> Table:
    """Scores for the terminal; with those from before, the comparison, standard errors behind a plus-minus.

    Args:
        before: ``None`` if there is nothing to compare with.
        after: The scores reported on.
        labels: Headings of the two.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(title="General ability (lm-evaluation-harness)")
    if before is not None:
        table.caption = "± standard error, as if the two had been asked different questions"
    headings = ["task", "metric", *labels, "difference"] if before is not None else ["task", "metric", labels[1]]
    for index, heading in enumerate(headings):
        table.add_column(Text(heading), justify="left" if index < 2 else "right")
    if before is None:
        for task, scores in after.items():
            for metric in filter(lambda name: not is_stderr(name), scores):
                table.add_row(task, metric, _with_error(f"{scores[metric]:.4f}", scores.get(stderr_of(metric))))
        return table
    for task, changes in compare_ability(before, after).items():
        for metric, change in changes.items():
            difference = _with_error(f"{change.difference:+.4f}", change.stderr)
            table.add_row(task, metric, f"{change.before:.4f}", f"{change.after:.4f}", difference)
    return table


def _with_error(shown: str, stderr: float | None) -> str:
    return shown if stderr is None else f"{shown} ± {stderr:.4f}"
