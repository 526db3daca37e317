"""AlphaEdit, AlphaEdit+ and each of its parts on the testbed (AlphaEdit+ paper, Tables 1 and 4).

    python -m benchmarks.editing [--seeds 3 4 5] [--output runs/editing]

* one batch: 50 edits at once;
* in sequence: five batches of 20, measured over all 100 right after their own batch ("at once") and after all;
* three sets of 50, a fifth of them hard, after 50 earlier edits: keys in high conflict with what is to be preserved,
  rewordings of earlier edits with other answers, and the largest residuals.

An answer counts if every one of its tokens is the most likely one. Statistics of the keys to preserve are of the
testbed's own statements and questions. Results are appended to `results.jsonl` as they come; a stopped run goes on
where it was.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
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

from corsa_plugins.alphaedit import (
    AlphaEditor,
    AlphaEditSettings,
    ConflictSet,
    KeyStatistics,
    collect_statistics,
    conflict_set,
)
from corsa_plugins.alphaedit.conflict_sets import reworded
from corsa_plugins.requests import EditRequest
from corsa_plugins.testbed import Testbed, load_testbed
from corsa_plugins.testbed.checks import greedy_matches
from corsa_plugins.testbed.corpus import facts_as_text

# Student's t, 97.5 %, by degrees of freedom: the half-width of a 95 % interval over seeds.
_T = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}

BATCH, SEQUENCE = "one batch of 50", "five batches of 20"
SETS = {
    "preserved": "high conflict with preserved keys",
    "prior": "high conflict with earlier edits",
    "inconsistent": "high inconsistency",
}
COLUMNS = ("efficacy at once", "efficacy", "generality", "neighbours", "untouched", "same subject", "earlier edits")
CONFLICTS = ("preserved_conflict", "subspace_conflict", "prior_conflict", "inconsistency")


def methods(settings: AlphaEditSettings) -> dict[str, AlphaEditSettings]:
    """AlphaEdit+ with all, each but one, and none of its parts."""
    return {
        "AlphaEdit": settings.alphaedit(),
        "AlphaEdit+": settings,
        "- search": replace(settings, search=None),
        "- conflict weights": replace(settings, conflict_weights=False),
        "- smoothing": replace(settings, smoothing=None),
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
    done = {(row["scenario"], row["method"], row["seed"]) for row in _read(path)}
    settings = AlphaEditSettings.load(arguments.settings)
    console = Console()
    bed = load_testbed()
    known = collect_statistics(
        bed.model,
        bed.tokenizer,
        list(facts_as_text(bed.world)),
        settings.layers,
        n_tokens=10**6,
        pack=False,
        batch_size=64,
    )
    for seed in arguments.seeds:
        for row in runs(bed, known, methods(settings), seed, done, arguments.only, arguments.scenarios):
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            console.print(f"{row['scenario']}, {row['method']}, seed {seed}: {_line(row)}")
    rows = [row for row in _read(path) if row["seed"] in arguments.seeds]
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
    sets: dict[str, ConflictSet] = {}
    for scenario in (BATCH, SEQUENCE, *SETS):
        if (
            scenarios
            and scenario not in scenarios
            and {BATCH: "batch", SEQUENCE: "sequence"}.get(scenario) not in scenarios
        ):
            continue
        for name, settings in by_name.items():
            label = SETS.get(scenario, scenario)
            if (label, name, seed) in done or (only and name not in only):
                continue
            if scenario in SETS and not sets:
                sets = conflict_sets(bed, known, by_name["AlphaEdit"], seed)
            editor = AlphaEditor(bed.model, bed.tokenizer, known, settings)
            start = time.perf_counter()
            try:
                row = _run(bed, editor, scenario, seed, sets.get(scenario))
            finally:
                editor.revert_all()
            yield {"scenario": label, "method": name, "seed": seed, "seconds": time.perf_counter() - start, **row}


def _run(bed: Testbed, editor: AlphaEditor, scenario: str, seed: int, hard: ConflictSet | None) -> dict[str, Any]:
    if scenario == BATCH:
        plan = bed.world.edit_rounds(n_rounds=1, size=50, seed=seed, untouched=500)
        rounds = plan.rounds
    elif scenario == SEQUENCE:
        plan = bed.world.edit_rounds(n_rounds=5, size=20, seed=seed, untouched=500)
        rounds = plan.rounds
    else:
        plan = bed.world.edit_rounds(n_rounds=2, size=100, seed=seed, untouched=500)
        assert hard is not None
        rounds = [plan.rounds[0][:50], list(hard.requests)]
    at_once, added, steps = [], [], []
    for requests in rounds:
        report = editor.edit(requests, answers=False)
        at_once += [request.edited for request in report.requests]
        added.append(report.layers[0].added)
        steps.append(report.layers[0].smoothing_step)
    measured = rounds if hard is None else rounds[1:]
    asked = [request for requests in measured for request in requests]
    row: dict[str, Any] = {
        "efficacy at once": _mean(at_once[-len(asked) :]),
        "efficacy": _share(bed, [(r.prompt, r.target_new) for r in asked]),
        "generality": _share(bed, [(p, r.target_new) for r in asked for p in r.paraphrases]),
        "neighbours": _share(bed, _neighbours(asked, rounds)),
        "untouched": _share(bed, [(r.prompt, r.target_new) for r in plan.untouched]),
        "same subject": _share(bed, _same_subject(bed, rounds)),
        "added": added,
        "smoothing step": steps,
    }
    if hard is not None:
        reasked = {request.subject for request in hard.requests}
        earlier = [request for request in rounds[0] if request.subject not in reasked]
        row["earlier edits"] = _share(bed, [(r.prompt, r.target_new) for r in earlier])
        row["hard efficacy"] = _share(
            bed, [(r.prompt, r.target_new) for r, chosen in zip(hard.requests, hard.hard, strict=True) if chosen]
        )
        row |= {name: hard.means[name] for name in CONFLICTS}
    return row


def conflict_sets(bed: Testbed, known: KeyStatistics, settings: AlphaEditSettings, seed: int) -> dict[str, ConflictSet]:
    """The three sets, the same for every method, built on a model with 50 AlphaEdit edits."""
    plan = bed.world.edit_rounds(n_rounds=2, size=100, seed=seed, untouched=500)
    prior, pool = plan.rounds[0][:50], plan.rounds[1]
    rng = random.Random(f"rewordings {seed}")
    editor = AlphaEditor(bed.model, bed.tokenizer, known, settings)
    try:
        editor.edit(prior, answers=False)
        found = {
            "preserved": conflict_set(editor, pool, "preserved", 50, seed=seed),
            "inconsistent": conflict_set(editor, pool, "inconsistent", 50, seed=seed),
        }
        again = []
        for request in rng.sample(prior, 10):
            fact = next(f for f in bed.world.facts_of[str(request.subject)] if f.answer == request.target_old)
            others = [a for a in bed.world.answers(fact.relation) if a not in (fact.answer, request.target_new)]
            again.append(reworded(request, rng.choice(others)))
        found["prior"] = conflict_set(editor, [*again, *rng.sample(pool, 40)], "prior", 50, seed=seed)
    finally:
        editor.revert_all()
    return found


def _neighbours(asked: Sequence[EditRequest], rounds: Sequence[Sequence[EditRequest]]) -> list[tuple[str, str]]:
    """Neighbourhood probes that no edit changed; a set's requests come from another round than the plan they avoid."""
    edited = {request.prompt for requests in rounds for request in requests}
    return [(p.prompt, str(p.answer)) for r in asked for p in r.neighborhood if p.prompt not in edited]


def _same_subject(bed: Testbed, rounds: Sequence[Sequence[EditRequest]]) -> list[tuple[str, str]]:
    """The other facts of the edited people."""
    edited = {request.prompt for requests in rounds for request in requests}
    people = {str(request.subject) for requests in rounds for request in requests}
    changed = {(str(r.subject), r.target_old) for requests in rounds for r in requests}
    facts = [fact for person in sorted(people) for fact in bed.world.facts_of[person]]
    return [
        (bed.world.prompts(fact), fact.answer)
        for fact in facts
        if bed.world.prompts(fact) not in edited and (fact.subject, fact.answer) not in changed
    ]


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
            cells = [_cell([100 * float(row[key]) for row in chosen]) if key in chosen[0] else "" for key in COLUMNS]
            added = _cell([statistics.mean(row["added"]) for row in chosen])
            seconds = f"{statistics.mean(float(row['seconds']) for row in chosen):.0f}"
            found.add_row(method, *cells, added, seconds)
    return found


def _cell(values: Sequence[float]) -> str:
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.1f}"
    half = _T.get(len(values) - 1, 1.96) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.1f} ± {half:.1f}"


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


if __name__ == "__main__":
    main()
