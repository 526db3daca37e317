"""What was asked: command, model, settings and versions."""

from __future__ import annotations

from corsa_plugins.report.render import render
from corsa_plugins.report.sections.section import Section

__all__ = ["ASKED"]

ASKED = Section(
    name="asked",
    title="What was asked",
    needs=lambda report: report.asked,
    render=lambda asked: render("asked.html", asked=asked),
    alone=False,
    closing=True,
)
