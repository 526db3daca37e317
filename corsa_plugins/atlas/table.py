"""What a model knows as a table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from corsa_plugins.atlas.knowledge import FORMS, Knowledge

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["knowledge_table"]


def knowledge_table(knowledge: Knowledge) -> Table:
    """For each relation, how many facts were asked and how many of them the model told in each form."""
    from rich.table import Table

    table = Table(
        "relation",
        "asked",
        *FORMS,
        "known",
        caption="told as a statement: all that were asked; in the other forms: those that it told before",
    )
    for relation, counts in knowledge.counts.items():
        known = sum(each.fact.relation == relation for each in knowledge.known)
        told = [str(counts.get(form, 0)) for form in FORMS]
        verdict = "left out" if relation in knowledge.left_out else str(known)
        table.add_row(relation, str(counts.get("asked", 0)), *told, verdict)
    table.add_row("all", "", *("" for _ in FORMS), str(len(knowledge.known)))
    return table
