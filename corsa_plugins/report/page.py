"""Evaluations as one HTML file that opens anywhere, offline: tables, figures, and every request with its answers.

The page loads nothing: style, script and figures are in it. What comes from models and requests is escaped, and a
content security policy lets no script run but the page's own. The same input gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

from corsa_plugins.bench.ability import Ability, ability_change, is_stderr, stderr_of
from corsa_plugins.bench.evaluation import METRICS, Evaluation, Interval, compare, pair_metrics
from corsa_plugins.bench.evaluation.metrics import select_metrics
from corsa_plugins.bench.evaluation.same_questions import ReportError, check_same_questions
from corsa_plugins.bench.protocols.shares import ForgettingPoint
from corsa_plugins.files import atomic_write_text
from corsa_plugins.report import svg
from corsa_plugins.report.figures import (
    Conflict,
    HistoryPoint,
    SweepRow,
    conflict_figures,
    figures,
    forgetting_figure,
    history_figures,
    history_points,
    sweep_figures,
)
from corsa_plugins.report.listing import listing, text

__all__ = [
    "Comparison",
    "Conflict",
    "CurvatureRow",
    "ForgettingPoint",
    "HarnessScore",
    "HistoryPoint",
    "SweepRow",
    "history_points",
    "versions",
    "write_report",
]

_ARROWS = {1: "\N{NO-BREAK SPACE}↑", -1: "\N{NO-BREAK SPACE}↓", 0: ""}


@dataclass(frozen=True)
class Comparison:
    """A table of means, of one moment for instance: a row for each model, a column for each metric.

    Attributes:
        heading: Above it.
        models: Their names.
        metrics: Title of each with its unit; whether more (1) or less (-1) of it is better; a mean for each model,
            ``None`` where there is none. Shares; they are shown in percent.
        caption: Below it.
    """

    heading: str
    models: Sequence[str]
    metrics: Sequence[tuple[str, int, Sequence[Interval | None]]]
    caption: str = ""


@dataclass(frozen=True)
class CurvatureRow:
    """Extreme eigenvalues of a Hessian over an adapter's parameters (CoRSA paper, 2.2 and C.1).

    Attributes:
        label: Of which model.
        of: Of which function, for instance ``"margin"``.
        largest: The eigenvalue of largest magnitude.
        top: The most positive one.
        iterations: That it took.
        converged: Whether it converged within its limit.
    """

    label: str
    of: str
    largest: float
    top: float
    iterations: int
    converged: bool


@dataclass(frozen=True)
class HarnessScore:
    """One score of lm-evaluation-harness.

    Attributes:
        task: For instance ``"mmlu"``.
        metric: For instance ``"acc"``.
        value: As the harness gives it.
        stderr: Its standard error, where there is one.
        label: Of which model.
        baseline: The label of the model to compare it with, where there is one.
    """

    task: str
    metric: str
    value: float
    stderr: float | None = None
    label: str = "model"
    baseline: str | None = None

    @classmethod
    def of(cls, ability: Ability, label: str, baseline: str | None = None) -> list[HarnessScore]:
        """All scores of one model."""
        return [
            cls(task, metric, value, scores.get(stderr_of(metric)), label, baseline)
            for task, scores in ability.items()
            for metric, value in scores.items()
            if not is_stderr(metric)
        ]


def versions() -> dict[str, str]:
    """Versions of what a result depends on, as far as installed: for ``asked``."""
    found = {"python": platform.python_version()}
    for name in ("corsa-plugins", "torch", "transformers", "peft", "trl"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_report(
    path: str | os.PathLike[str],
    evaluations: Sequence[Evaluation],
    *,
    title: str,
    asked: Mapping[str, Any],
    comparisons: Sequence[Comparison] = (),
    answers: Sequence[Sequence[Evaluation]] | None = None,
    history: Sequence[HistoryPoint] | None = None,
    forgetting: Sequence[ForgettingPoint] | None = None,
    sweep: Sequence[SweepRow] | None = None,
    conflicts: Sequence[Conflict] | None = None,
    curvature: Sequence[CurvatureRow] | None = None,
    harness: Sequence[HarnessScore] | None = None,
    notes: Sequence[str] = (),
    later: bool = False,
) -> Path:
    """Write a report, completely or not at all. Sections without data are left out.

    Args:
        path: The file, for instance ``results/report.html``.
        evaluations: In the order of their columns. The last is the one reported on; the list of requests shows it
            beside those that were asked the same. With exactly two, asked the same, the change is shown too.
        title: Of the page.
        asked: What was run: command, model, settings, versions; shown as it is, in this order.
        comparisons: Tables to open with.
        answers: What the list of requests shows, by default that of ``evaluations``: groups of evaluations that were
            asked the same.
        history: Log-probabilities and margins over training (CoRSA paper, Figure 2).
        forgetting: Forgetting over the share of the data used (CoRSA paper, Figure 3).
        sweep: Edits kept against facts retained over scale and density (model merging paper, Figures 2 and 3).
        conflicts: Conflict figures of each request (AlphaEdit+ paper, Figure 3).
        curvature: Extreme eigenvalues of Hessians.
        harness: Scores of general ability.
        notes: Paragraphs for the reader, below the title.
        later: With two evaluations: whether the first is from right after the update and the second from after later
            ones (forgetting), rather than from before and after it (locality).

    Returns:
        The path written to.

    Raises:
        ReportError: There is nothing to report.
        OSError: The file cannot be written.
    """
    if not any((evaluations, comparisons, answers, history, forgetting, sweep, conflicts, curvature, harness)):
        raise ReportError("nothing to report: give an evaluation, or figures")
    sections = [
        ("Results", "".join(map(_comparison, comparisons)) + (_results(evaluations, later) if evaluations else "")),
        ("During training", figures(history_figures(history or ()))),
        ("Forgetting", figures(forgetting_figure(forgetting or ()))),
        ("Scale and density", figures(sweep_figures(sweep or ()))),
        ("Conflicts", figures(conflict_figures(conflicts or ()))),
        ("Curvature", _curvature(curvature) if curvature else ""),
        ("General ability", _harness(harness) if harness else ""),
        ("Requests and answers", _answers(evaluations) if answers is None else _groups(answers)),
        ("What was asked", _asked(asked) if asked else ""),
    ]
    kept = [(f"s{place}", name, content) for place, (name, content) in enumerate(sections) if content]
    links = "".join(f'<a href="#{key}">{name}</a>' for key, name, _ in kept)
    body = "\n".join(f'<section id="{key}"><h2>{name}</h2>\n{content}\n</section>' for key, name, content in kept)
    said = "".join(f"<p>{text(note)}</p>\n" for note in notes)
    folder = files("corsa_plugins.report") / "assets"
    style = (folder / "report.css").read_text(encoding="utf-8")
    script = (folder / "report.js").read_text(encoding="utf-8")
    own = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{own}'; base-uri 'none'; form-action 'none'"
    )
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<h1>{text(title)}</h1>\n{said}<nav>{links}</nav>\n{body}\n<script>{script}</script>\n</body>\n</html>\n"
    )
    return atomic_write_text(path, page)


def _table(name: str, head: str, body: str) -> str:
    """A table in a box of its own that scrolls, by touch or by keyboard."""
    return (
        f'<div class="box" tabindex="0" role="region" aria-label="{name}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>\n"
    )


def _asked(asked: Mapping[str, Any]) -> str:
    rows = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in asked.items())
    return f'<dl class="asked">{rows}</dl>'


def _results(evaluations: Sequence[Evaluation], later: bool) -> str:
    summaries = [evaluation.summary() for evaluation in evaluations]
    measured = [metric for metric in select_metrics(of=None) if any(metric.name in summary for summary in summaries)]
    changes, pairs, remark = {}, {}, ""
    if len(evaluations) == 2:
        try:
            changes = compare(*evaluations)
            pairs = pair_metrics(*evaluations, later=later)
        except ReportError as error:
            remark = f'<p class="soft">No changes are shown: {text(error)}.</p>'
    heads = "".join(f'<th scope="col">{text(evaluation.label)}</th>' for evaluation in evaluations)
    rows = []
    for metric in measured:
        cells = "".join(_interval_cell(summary.get(metric.name), metric.percent) for summary in summaries)
        if changes:
            change = changes[metric.name].difference if metric.name in changes else None
            cells += _interval_cell(change, metric.percent, change=True)
        rows.append(f'<tr><th scope="row">{text(metric.title_with_unit)}{_ARROWS[metric.better]}</th>{cells}</tr>')
    for name, interval in pairs.items():
        metric = METRICS[name]
        cells = "<td></td>" + _interval_cell(interval, metric.percent) + ("<td></td>" if changes else "")
        rows.append(f'<tr><th scope="row">{text(metric.title_with_unit)}{_ARROWS[metric.better]}</th>{cells}</tr>')
    terms = [(metric.title_with_unit, metric.meaning) for metric in measured]
    terms += [(METRICS[name].title, METRICS[name].meaning) for name in pairs]
    defined = "".join(f"<dt>{text(name)}</dt><dd>{text(meaning)}</dd>" for name, meaning in terms)
    since = f'<th scope="col">change from {text(evaluations[0].label)}</th>' if changes else ""
    head = f"<th></th>{heads}{since}"
    return (
        remark
        + _table("Results", head, "".join(rows))
        + '<p class="soft">Means with 95 % bootstrap intervals over requests; '
        "↑ more is better, ↓ less is better.</p>\n"
        f'<details><summary>What each line counts</summary><dl class="terms">{defined}</dl></details>'
    )


def _comparison(comparison: Comparison) -> str:
    heads = "".join(f'<th scope="col">{text(title)}{_ARROWS[better]}</th>' for title, better, _ in comparison.metrics)
    body = ""
    for place, model in enumerate(comparison.models):
        cells = "".join(_interval_cell(means[place], True) for _, _, means in comparison.metrics)
        body += f'<tr><th scope="row">{text(model)}</th>{cells}</tr>'
    caption = f'<p class="soft">{text(comparison.caption)}</p>\n' if comparison.caption else ""
    heading = f"<h3>{text(comparison.heading)}</h3>\n" if comparison.heading else ""
    return heading + _table(text(comparison.heading or "Results"), f"<th></th>{heads}", body) + caption


def _interval_cell(interval: Interval | None, percent: bool, *, change: bool = False) -> str:
    if interval is None:
        return "<td></td>"
    scale, digits, sign = (100, 1, "+" if change else "") if percent else (1, 2, "+" if change else "")
    mean, low, high = (f"{scale * value:{sign}.{digits}f}" for value in interval[:3])
    drawn = svg.interval_mark(*interval[:3], title=f"{mean}, from {low} to {high}") if percent and not change else ""
    return f"<td>{mean}<small>[{low}, {high}]</small>{drawn}</td>"


def _answers(evaluations: Sequence[Evaluation]) -> str:
    if not evaluations:
        return ""
    last, alike, left_out = evaluations[-1], [], []
    for evaluation in evaluations[:-1]:
        try:
            check_same_questions(evaluation, last)
            alike.append(evaluation)
        except ReportError:
            left_out.append(evaluation.label)
    remark = ""
    if left_out:
        remark = f'<p class="soft">Asked other questions, and not shown here: {text(", ".join(left_out))}.</p>\n'
    return remark + listing([[*alike, last]])


def _groups(groups: Sequence[Sequence[Evaluation]]) -> str:
    for group in groups:
        for evaluation in group[1:]:
            check_same_questions(group[0], evaluation)
    return listing(groups) if groups else ""


def _curvature(rows: Sequence[CurvatureRow]) -> str:
    body = "".join(
        f'<tr><th scope="row">{text(row.label)}</th><td>{text(row.of)}</td><td>{row.largest:.4g}</td>'
        f"<td>{row.top:.4g}</td><td>{row.iterations}</td><td>{'yes' if row.converged else 'no'}</td></tr>"
        for row in rows
    )
    names = ("", "of", "largest in magnitude", "most positive", "iterations", "converged")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    remark = "Eigenvalues of the Hessian over the adapter's parameters; smaller is flatter."
    return _table("Curvature", head, body) + f'<p class="soft">{remark}</p>'


def _harness(scores: Sequence[HarnessScore]) -> str:
    against: dict[str, str | None] = {}
    for one in scores:
        against[one.label] = against.get(one.label) or one.baseline
    lines = list(dict.fromkeys((score.task, score.metric) for score in scores))
    found = {(score.task, score.metric, score.label): score for score in scores}
    body = ""
    for task, metric in lines:
        cells = ""
        for label, baseline in against.items():
            score, base = found.get((task, metric, label)), found.get((task, metric, baseline or ""))
            cells += _score_cell(f"{score.value:.4f}", score.stderr) if score else "<td></td>"
            if baseline in against and score and base:
                change = ability_change(base.value, score.value, base.stderr, score.stderr)
                cells += _score_cell(f"{change.difference:+.4f}", change.stderr)
            elif baseline in against:
                cells += "<td></td>"
        body += f'<tr><th scope="row">{text(task)}, {text(metric)}</th>{cells}</tr>'
    names = [name for label, base in against.items() for name in (label, *(["difference"] if base in against else []))]
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in names)
    remark = "lm-evaluation-harness; ± is the standard error"
    if "difference" in names:
        compared = list(dict.fromkeys(base for base in against.values() if base in against))
        remark += (
            f". A difference is the score left of it minus that of {' or '.join(map(str, compared))}; its standard "
            "error is as if they had been asked different questions, and so rather too large"
        )
    return _table("General ability", f"<th></th>{head}", body) + f'<p class="soft">{text(remark)}.</p>'


def _score_cell(shown: str, stderr: float | None) -> str:
    error = "" if stderr is None else f"<small>± {stderr:.4f}</small>"
    return f"<td>{shown}{error}</td>"
