"""Code: how often programs that a model writes pass their tests, and what else became of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from corsa_plugins.bench.code.results import CODE as FILE
from corsa_plugins.bench.code.results import CodeFigures
from corsa_plugins.bench.evaluation import Interval
from corsa_plugins.report.kinds import File, Kind, has
from corsa_plugins.report.render import render
from corsa_plugins.report.sections.cells import IntervalCell, interval_cell
from corsa_plugins.report.sections.section import Section

__all__ = ["CODE"]

_TERMS = {
    "UPass": "programs for problems that need the update of a function: right are those that pass all tests with the "
    "update in place, and not all of them without it",
    "UPass (trained on)": "the same of the problems that were trained on",
    "SPass": "programs for unrelated problems, which show what else the model has lost",
    "pass@k": "how likely one of k answers is right, as n answers of which c are tell: 1 - C(n-c, k) / C(n, k)",
    "no program": "answers in which no beginning is Python that makes the function",
    "not needed": "answers that pass without the update",
    "not set up": "the update cannot be put in place on this machine",
    "time, output, left, ended": "programs that took too long, wrote too much, left processes behind, or ended "
    "their own",
}


@dataclass(frozen=True)
class _Row:
    measure: str
    at: str
    cells: list[IntervalCell | None]


@dataclass(frozen=True)
class _Outcome:
    label: str
    measure: str
    problems: int
    counts: list[int]


def _rows(runs: Sequence[CodeFigures]) -> list[_Row]:
    asked = dict.fromkeys((name, k) for run in runs for name, of in run.measures.items() for k in sorted(of.passes))
    measures = list(dict.fromkeys(name for name, _ in asked))
    return [
        _Row(name, f"pass@{k}", [interval_cell(_at(run, name, k), True) for run in runs])
        for name, k in sorted(asked, key=lambda one: (measures.index(one[0]), one[1]))
    ]


def _at(run: CodeFigures, name: str, k: int) -> Interval | None:
    return run.measures[name].passes.get(k) if name in run.measures else None


def _render(runs: list[CodeFigures]) -> Markup:
    kinds = list(dict.fromkeys(what for run in runs for of in run.measures.values() for what in of.answers))
    outcomes = [
        _Outcome(run.label, name, of.problems, [of.answers.get(what, 0) for what in kinds])
        for run in runs
        for name, of in run.measures.items()
    ]
    return render(
        "code.html",
        labels=[run.label for run in runs],
        rows=_rows(runs),
        kinds=kinds,
        outcomes=outcomes,
        sampling=[(run.label, ", ".join(f"{k} {v}" for k, v in run.sampling.items())) for run in runs if run.sampling],
        unheld=[(run.label, ", ".join(run.unenforced)) for run in runs if run.unenforced],
        terms=_TERMS.items(),
    )


def _read(file: File) -> tuple[list[CodeFigures], str]:
    figures = CodeFigures.from_dict(file.data)
    if file.is_labelled:
        figures = replace(figures, label=file.label)
    return [figures], f"{figures.label}, {', '.join(figures.measures)}"


CODE = Section(
    name="code",
    title="Code",
    render=_render,
    kinds=(
        Kind(
            name="passes of programs",
            fits=has("figures", "sampling", "unenforced"),
            read=_read,
            names=(FILE,),
            said=f"passes of programs ({FILE} of corsa evaluate-code)",
        ),
    ),
)
