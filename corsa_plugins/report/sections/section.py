"""What a section of a page is: one value, which the page, the reader of files and the command read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from corsa_plugins.report.kinds import Kind
from corsa_plugins.report.report import Report

__all__ = ["Section"]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the page.

    Attributes:
        name: Of its part of a report (:attr:`~corsa_plugins.report.report.Report.parts`), and of its place on the page.
        title: Its heading.
        render: Makes HTML of what it needs. A text is escaped; markup comes from a template
            (:func:`~corsa_plugins.report.render.render`). Empty: the section is left out.
        needs: What it needs of a report; by default its own part. Where that is nothing, the section is left out.
        kinds: The files that it is made of.
        alone: Whether a page may consist of it.
        closing: Whether it comes behind those of other packages.
    """

    name: str
    title: str
    render: Callable[[Any], Markup | str]
    needs: Callable[[Report], Any] | None = None
    kinds: tuple[Kind, ...] = ()
    alone: bool = True
    closing: bool = False

    def part(self, report: Report) -> Any:
        """What it needs of this report."""
        return report.parts.get(self.name, ()) if self.needs is None else self.needs(report)
