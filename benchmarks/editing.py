"""AlphaEdit, AlphaEdit+ and each of its parts on the testbed (AlphaEdit+ paper, Tables 1 and 4).

    python -m benchmarks.editing [--seeds 3 4 5] [--output runs/editing]

* one batch: 50 edits at once;
* in sequence: five batches of 20, measured over all 100 right after their own batch ("at once") and after all;
* three sets of 50, a fifth of them hard, after 50 earlier edits: keys in high conflict with what is to be preserved,
  rewordings of earlier edits with other answers, and the largest residuals.

"hard" is the efficacy on the hard fifth alone, "earlier edits" that of the 50 of people the set does not ask about.
An answer counts if every one of its tokens is the most likely one. Statistics of the keys to preserve are of the
testbed's own statements and questions. Results are appended to `results.jsonl` as they come; a stopped run goes on
where it was.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.intervals import shown
from benchmarks.rows import append_row, read_rows
from corsa_plugins.alphaedit import AlphaEditor, AlphaEditSettings, EditReport, KeyStatistics, collect_statistics
from corsa_plugins.bench.conflict_sets import ConflictPlan, ConflictSet, conflict_set, reworded
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.testbed import Testbed, load_testbed
from corsa_plugins.testbed.checks import greedy_matches
from corsa_plugins.testbed.corpus import facts_as_text

BATCH, SEQUENCE = "one batch of 50", "five batches of 20"
SETS = {
    "preserved": "high conflict with preserved keys",
    "prior": "high conflict with earlier edits",
    "inconsistent": "high inconsistency",
}
COLUMNS = (
    "efficacy at once",
    "efficacy",
    "hard",
    "generality",
    "neighbours",
    "untouched",
    "same subject",
    "earlier edits",
)
CONFLICTS = ("preserved_conflict", "subspace_conflict", "prior_conflict", "inconsistency")


def methods(settings: AlphaEditSettings) -> dict[str, AlphaEditSettings]:
    """AlphaEdit+ with all, each but one, and none of its parts; and with the paper's rule for smoothed targets."""
    assert settings.smoothing is not None
    return {
        "AlphaEdit": settings.alphaedit(),
        "AlphaEdit+": settings,
        "- search": replace(settings, search=None),
        "- conflict weights": replace(settings, conflict_weights=False),
        "- smoothing": replace(settings, smoothing=None),
        "smoothing stopped early": replace(settings, smoothing=replace(settings.smoothing, selection="early_stop")),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--settings", default="testbed", help="a preset or a YAML file")
    parser.add_argument("--only", nargs="+", help="run these methods only")
    parser.add_argument("--scenarios", nargs="+", help="run these scenarios only: batch, sequence, or a kind of set")
    parser.add_argument("--output", type=Path, default=Path("runs/editing"))
    arguments = parser.parse_args(argv)
    logging.getLogger("corsa_plugins").setLevel(logging.ERROR)  # what was not edited is counted below
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "results.jsonl"
    done = {(row["scenario"], row["method"], row["seed"]) for row in read_rows(path)}
    settings = AlphaEditSettings.load(arguments.settings)
    console = Console()
    bed = load_testbed()
    texts = list(facts_as_text(bed.world))
    known = collect_statistics(
        bed.model, bed.tokenizer, texts, settings.layers, n_tokens=10**6, pack=False, batch_size=64
    )
    for seed in arguments.seeds:
        for row in runs(bed, known, methods(settings), seed, done, arguments.only, arguments.scenarios):
            append_row(path, row)
            console.print(f"{row['scenario']}, {row['method']}, seed {seed}: {_line(row)}")
    rows = [row for row in read_rows(path) if row["seed"] in arguments.seeds]
    wide = console if console.is_terminal else Console(width=200)
    wide.print(table(rows))


def runs(
    bed: Testbed,
    known: KeyStatistics,
    by_name: dict[str, AlphaEditSettings],
    seed: int,
    done: set[tuple[str, str, int]],
    only: Sequence[str] | None,
    scenarios: Sequence[str] | None,
) -> Iterator[dict[str, Any]]:
    """A row for each scenario and method that is not done yet."""
    wanted = [
        s
        for s in (BATCH, SEQUENCE, *SETS)
        if not scenarios or {BATCH: "batch", SEQUENCE: "sequence"}.get(s, s) in scenarios
    ]
    sets: dict[str, ConflictSet] = {}
    for name, settings in by_name.items():
        todo = [s for s in wanted if (SETS.get(s, s), name, seed) not in done and not (only and name not in only)]
        editor = AlphaEditor(bed.model, bed.tokenizer, known, settings)
        try:
            for scenario in todo:
                start = time.perf_counter()
                if scenario not in SETS:
                    row = _batches(bed, editor, 50 if scenario == BATCH else 20, 1 if scenario == BATCH else 5, seed)
                    editor.revert_all()
                else:
                    sets = sets or conflict_sets(bed, known, by_name["AlphaEdit"], seed)
                    row = _hard(bed, editor, sets[scenario], seed)
                label, seconds = SETS.get(scenario, scenario), time.perf_counter() - start
                yield {"scenario": label, "method": name, "seed": seed, "seconds": seconds, **row}
        finally:
            editor.revert_all()


def _batches(bed: Testbed, editor: AlphaEditor, size: int, n_rounds: int, seed: int) -> dict[str, Any]:
    """Edits of batches one after the other, on an unedited model."""
    plan = bed.world.edit_rounds(n_rounds=n_rounds, size=size, seed=seed, untouched=500)
    reports = [editor.edit(requests, answers=False) for requests in plan.rounds]
    asked = [request for requests in plan.rounds for request in requests]
    return {**_measure(bed, reports, asked, asked, plan.untouched)}


def _hard(bed: Testbed, editor: AlphaEditor, hard: ConflictSet, seed: int) -> dict[str, Any]:
    """A set on top of 50 earlier edits, which stay in force for the next set."""
    plan = bed.world.edit_rounds(n_rounds=2, size=100, seed=seed, untouched=500)
    prior = plan.rounds[0][:50]
    if not editor.state.batches:
        editor.edit(prior, name="earlier", answers=False)
    report = editor.edit(hard.requests, name="set", answers=False)
    again = {request.subject for request in hard.requests}
    earlier = [request for request in prior if request.subject not in again]
    row = _measure(bed, [report], hard.requests, [*prior, *hard.requests], plan.untouched)
    row["earlier edits"] = _share(bed, [(r.prompt, r.target_new) for r in earlier])
    row["hard"] = _share(bed, [(r.prompt, r.target_new) for r, c in zip(hard.requests, hard.hard, strict=True) if c])
    editor.revert("set")
    return {**row, **hard.means}


def _measure(
    bed: Testbed,
    reports: Sequence[EditReport],
    asked: Sequence[EditRequest],
    edited: Sequence[EditRequest],
    untouched: Sequence[EditRequest],
) -> dict[str, Any]:
    return {
        "efficacy at once": _mean([request.edited for report in reports for request in report.requests]),
        "efficacy": _share(bed, [(r.prompt, r.target_new) for r in asked]),
        "generality": _share(bed, [(p, r.target_new) for r in asked for p in r.paraphrases]),
        "neighbours": _share(bed, _neighbours(asked, edited)),
        "untouched": _share(bed, [(r.prompt, r.target_new) for r in untouched]),
        "same subject": _share(bed, _same_subject(bed, edited)),
        "added": [report.layers[0].added for report in reports],
        "smoothing step": [report.layers[0].smoothing_step for report in reports],
    }


def conflict_sets(bed: Testbed, known: KeyStatistics, settings: AlphaEditSettings, seed: int) -> dict[str, ConflictSet]:
    """The three sets, the same for every method, built on a model with 50 AlphaEdit edits."""
    plan = bed.world.edit_rounds(n_rounds=2, size=100, seed=seed, untouched=500)
    prior, pool = plan.rounds[0][:50], plan.rounds[1]
    rng = random.Random(f"rewordings {seed}")
    editor = AlphaEditor(bed.model, bed.tokenizer, known, settings)
    try:
        editor.edit(prior, answers=False)
        found = {
            "preserved": conflict_set(editor, pool, ConflictPlan("preserved", 50, seed=seed)),
            "inconsistent": conflict_set(editor, pool, ConflictPlan("inconsistent", 50, seed=seed)),
        }
        again = []
        for request in rng.sample(prior, 10):
            fact = next(f for f in bed.world.facts_of[str(request.subject)] if f.answer == request.target_old)
            others = [a for a in bed.world.answers(fact.relation) if a not in (fact.answer, request.target_new)]
            again.append(reworded(request, rng.choice(others)))
        found["prior"] = conflict_set(editor, [*again, *rng.sample(pool, 40)], ConflictPlan("prior", 50, seed=seed))
    finally:
        editor.revert_all()
    return found


def _neighbours(asked: Sequence[EditRequest], edited: Sequence[EditRequest]) -> list[tuple[str, str]]:
    """Neighbourhood probes of facts that no edit changed."""
    changed = {request.prompt for request in edited}
    return [(p.prompt, str(p.answer)) for r in asked for p in r.neighborhood if p.prompt not in changed]


def _same_subject(bed: Testbed, edited: Sequence[EditRequest]) -> list[tuple[str, str]]:
    """The other facts of the edited people."""
    changed = {(str(request.subject), request.target_old) for request in edited}
    prompts = {request.prompt for request in edited}
    facts = [fact for person in sorted({str(r.subject) for r in edited}) for fact in bed.world.facts_of[person]]
    kept = [fact for fact in facts if (fact.subject, fact.answer) not in changed]
    return [(bed.world.prompts(f), f.answer) for f in kept if bed.world.prompts(f) not in prompts]


def _share(bed: Testbed, pairs: Sequence[tuple[str, str]]) -> float:
    prompts, answers = zip(*pairs, strict=True)
    return _mean(greedy_matches(bed.model, bed.tokenizer, prompts, answers))


def _line(row: dict[str, Any]) -> str:
    shown = [f"{name} {100 * row[name]:.1f}" for name in COLUMNS if name in row]
    return ", ".join([*shown, f"added {row['added']}", f"t {row['smoothing step']}", f"{row['seconds']:.0f} s"])


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """A row for each scenario and method: the mean over seeds with the half-width of its 95 % interval, in percent."""
    seeds = sorted({row["seed"] for row in rows})
    names = {name: version(name) for name in ("torch", "transformers")}
    found = Table(
        title=f"Testbed, seeds {seeds}; {', '.join(' '.join(item) for item in names.items())}", title_style=""
    )
    found.add_column("percent, mean ± 95 % over seeds")
    for heading in COLUMNS:
        found.add_column(heading, justify="right")
    found.add_column("eigenvectors added", justify="right")
    found.add_column("s (time)", justify="right")
    scenarios = dict.fromkeys(row["scenario"] for row in rows)
    for scenario in scenarios:
        of_scenario = [row for row in rows if row["scenario"] == scenario]
        means = {
            name: statistics.mean(float(row[name]) for row in of_scenario)
            for name in CONFLICTS
            if of_scenario[0].get(name) is not None
        }
        note = ", ".join(f"{name.removesuffix('_conflict')} {value:.2f}" for name, value in means.items())
        found.add_section()
        found.add_row(f"{scenario}{f' ({note})' if note else ''}", style="bold")
        for method in dict.fromkeys(row["method"] for row in of_scenario):
            chosen = [row for row in of_scenario if row["method"] == method]
            cells = [shown([100 * float(row[key]) for row in chosen]) if key in chosen[0] else "" for key in COLUMNS]
            added = shown([statistics.mean(row["added"]) for row in chosen])
            seconds = f"{statistics.mean(float(row['seconds']) for row in chosen):.0f}"
            found.add_row(method, *cells, added, seconds)
    return found


if __name__ == "__main__":
    main()
