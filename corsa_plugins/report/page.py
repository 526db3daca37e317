"""A report as one HTML file that opens anywhere, offline: tables, figures, and every request with its answers.

The page loads nothing: style, script and figures are in it. What comes from models and requests is escaped, and a
content security policy lets no script run but the page's own. The same input gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import os
from importlib.resources import files
from pathlib import Path

from markupsafe import Markup

from corsa_plugins.bench.evaluation import ReportError
from corsa_plugins.errors import SettingError
from corsa_plugins.files import atomic_write_text
from corsa_plugins.report.render import render
from corsa_plugins.report.report import Column, Comparison, Report, versions
from corsa_plugins.report.sections import SECTIONS, Section, in_order

__all__ = ["Column", "Comparison", "Report", "page", "versions", "write_report"]


def write_report(path: str | os.PathLike[str], report: Report) -> Path:
    """Write a report, completely or not at all.

    Args:
        path: The file, for instance ``results/report.html``.
        report: What it shows. Sections without data are left out.

    Returns:
        The path written to.

    Raises:
        ReportError: There is nothing to report.
        SettingError: It has a part that no section shows.
        OSError: The file cannot be written.
    """
    return atomic_write_text(path, page(report))


def page(report: Report) -> str:
    """A report as HTML.

    Raises:
        ReportError, SettingError: As for :func:`write_report`.
    """
    unknown = [name for name in report.parts if name not in SECTIONS]
    if unknown:
        raise SettingError(f"no section shows {', '.join(unknown)}: the sections are {', '.join(SECTIONS)}")
    sections = in_order()
    if not any(section.alone and section.part(report) for section in sections):
        raise ReportError("nothing to report: give an evaluation, or figures")
    contents = [(section, _content(section, report)) for section in sections]
    assets = files("corsa_plugins.report") / "assets"
    script = (assets / "report.js").read_text(encoding="utf-8")
    return render(
        "page.html",
        title=report.title,
        notes=report.notes,
        sections=[(section, content) for section, content in contents if content],
        style=Markup((assets / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _content(section: Section, report: Report) -> str:
    """The section's HTML, empty where it has nothing to show."""
    part = section.part(report)
    return section.render(part).strip() if part else ""
