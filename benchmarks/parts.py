"""AlphaEdit, AlphaEdit+ and each of its parts alone, on any model, where nothing conflicts and where something does.

    python -m benchmarks.parts --model FOLDER --rounds round_1.jsonl --watched untouched.jsonl --statistics stats
        [--settings auto|FILE] [--layers 3-7] [--scenarios 20 60 3x20 again50 ...] [--seeds 3 4 5] [--output runs/parts]
    python -m benchmarks.parts --atlas FOLDER --settings auto ...

`corsa testbed`, `corsa atlas` and `corsa stats` write such files. With --atlas they are those of a folder of
`corsa atlas`, as `corsa demo --atlas` takes them: statements alone, of each request two neighbours, and statistics of
text that the model writes by itself. A scenario is one batch (`60`), batches in sequence
(`3x20`), or a batch upon an earlier one of the same size, a fifth of it hard: earlier edits asked for again, in other
words and with other answers (`again50`), keys in high conflict with preserved ones (`preserved50`), or the largest
residuals (`inconsistent50`), of what the rounds have beside the earlier batch. Each seed draws its requests from all
rounds. An answer counts if its every token is the most likely one; `hard` is the efficacy on the hard fifth, `earlier`
that of the earlier batch but for what is asked again, `neighbours` are facts with the relation of an edited one,
`watched` those of the file. `stays protected` is the share of the preserved keys' energy that edits do not reach, in
the edited layer in which it is least.

With ``--settings auto`` they are chosen for each draw, by its first batch; for an atlas once, which is of what the
model is known to know. The value vectors do not depend on the
parts: they are found once for each batch and kept in OUTPUT/values. Results are
appended to OUTPUT/results.jsonl as they come; a stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import compress
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.intervals import mean_and_half_width, shown
from benchmarks.rows import append_row, read_rows
from corsa_plugins.alphaedit import (
    AlphaEditor,
    AlphaEditSettings,
    EditReport,
    KeyStatistics,
    NullSpaceRule,
    SearchSettings,
    SmoothingSettings,
)
from corsa_plugins.alphaedit import reader as model_reader
from corsa_plugins.alphaedit.auto import AUTO, Choice, choose_settings, settings_for
from corsa_plugins.alphaedit.values.search import Values, find_values
from corsa_plugins.bench.conflict_sets import ConflictPlan, conflict_set, rewordings
from corsa_plugins.cli.values import parse_layers
from corsa_plugins.data.reading import read_requests
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.demo.run import SharedStatistics
from corsa_plugins.demo.worlds import AtlasWorld
from corsa_plugins.files import atomic_file
from corsa_plugins.model.asking import score_targets
from corsa_plugins.model.loading import load_model

COLUMNS = ("efficacy", "hard", "generality", "earlier", "neighbours", "watched")
ALPHAEDIT = "AlphaEdit"


def methods(settings: AlphaEditSettings, plain: AlphaEditSettings | None = None) -> dict[str, AlphaEditSettings]:
    """AlphaEdit (``plain``, or the same settings without the parts), each part of AlphaEdit+ alone upon it, all of
    them, and two parts alone as the paper has them."""
    plain = plain or settings.alphaedit()
    printed = SmoothingSettings(over_median=0, selection="early_stop")
    return {
        ALPHAEDIT: plain,
        "search alone": replace(plain, search=settings.search),
        "conflict weights alone": replace(plain, conflict_weights=True, prior_weight=settings.prior_weight),
        "smoothing alone": replace(plain, smoothing=settings.smoothing),
        "AlphaEdit+": settings,
        "search, threshold 1.4e-4": replace(plain, search=SearchSettings(1.4e-4)),
        "smoothing as in the paper": replace(plain, smoothing=printed, validation_score="accuracy"),
    }


METHODS = tuple(methods(AlphaEditSettings(layers=(0,))))


@dataclass(frozen=True)
class Scenario:
    """Batches to edit one after the other, and what is asked afterwards.

    Attributes:
        batches: In order.
        asked: Whose answers count.
        hard: Those of them that are hard.
    """

    batches: list[list[EditRequest]]
    asked: list[EditRequest]
    hard: list[EditRequest]

    @property
    def earlier(self) -> list[EditRequest]:
        """Those of the earlier batch that are not asked again; none where all that is edited counts."""
        again = {request.subject for request in self.asked}
        return [request for request in self.batches[0] if request.subject not in again]

    @classmethod
    def draw(cls, name: str, pool: Sequence[EditRequest], seed: int, editor: Callable[[], AlphaEditor]) -> Scenario:
        """``20``, ``3x20``, ``again20``, ``preserved20`` or ``inconsistent20``, of the requests of ``pool``. Seed and
        name decide; of the last two AlphaEdit, by which the hard requests are found on the weights after the first
        batch, which is taken back."""
        kind, size, drawn = draw(name, pool, seed)
        if kind is None:
            return cls([drawn[start : start + size] for start in range(0, len(drawn), size)], drawn, [])
        first = drawn[:size]
        if kind == "again":
            hard = rewordings(first, pool, size // 5, seed=seed)
            latest = hard + drawn[size : 2 * size - len(hard)]
            return cls([first, latest], latest, hard)
        with after(editor(), first) as edited:
            found = conflict_set(edited, pool, ConflictPlan(kind, size, seed=seed), exclude=first)
        latest = list(found.requests)
        return cls([first, latest], latest, list(compress(latest, found.hard)))


def draw(name: str, pool: Sequence[EditRequest], seed: int) -> tuple[str | None, int, list[EditRequest]]:
    """What a scenario's name says: of which kind its hard requests are, if any, the size of its batches, and what is
    drawn for them, those of the first batch first."""
    match = re.fullmatch(r"(again|preserved|inconsistent|(\d+)x)?(\d+)", name)
    if not match:
        raise SystemExit(f"scenario {name}: give a size, such as 20, 3x20, again20, preserved20 or inconsistent20")
    size, kind = int(match[3]), match[1] if match[1] and not match[2] else None
    count = 2 * size if kind else int(match[2] or 1) * size
    if count > len(pool):
        raise SystemExit(f"scenario {name} needs {count} requests, and the rounds have {len(pool)}")
    return kind, size, random.Random(f"parts {seed}").sample(list(pool), count)


@contextmanager
def after(editor: AlphaEditor, batch: Sequence[EditRequest]) -> Iterator[AlphaEditor]:
    """The editor with a batch in force, which is taken back."""
    try:
        editor.edit(batch, answers=False)
        yield editor
    finally:
        editor.revert_all()


@contextmanager
def kept_values(folder: Path) -> Iterator[None]:
    """Value vectors are looked for once, by requests, settings and weights, and read from ``folder`` after that."""

    def found(model: Any, tokenizer: Any, requests: Any, layer: int, contexts: Any, settings: Any, **rest: Any) -> Any:
        what = [[request.model_dump() for request in requests], layer, list(contexts), settings]
        key = hashlib.sha256(repr(what).encode())
        for parameter in model.parameters():
            key.update(parameter.detach().contiguous().view(torch.uint8).cpu().numpy())
        path = folder / f"{key.hexdigest()[:32]}.pt"
        if not path.exists():
            values = find_values(model, tokenizer, requests, layer, contexts, settings, **rest)
            with atomic_file(path) as part:
                torch.save(vars(values), part)
        return Values(**torch.load(path))

    folder.mkdir(parents=True, exist_ok=True)
    with mock.patch.object(model_reader, "find_values", found):
        yield


def run(editor: AlphaEditor, scenario: Scenario, watched: Sequence[EditRequest]) -> dict[str, Any]:
    """Edit, ask, and take the edits back."""
    try:
        reports = [editor.edit(batch, answers=False) for batch in scenario.batches]
        changed = {request.prompt for batch in scenario.batches for request in batch}
        near = {p.prompt: str(p.answer) for r in scenario.asked for p in r.neighborhood if p.prompt not in changed}
        pairs = {
            "efficacy": [(r.prompt, r.target_new) for r in scenario.asked],
            "hard": [(r.prompt, r.target_new) for r in scenario.hard],
            "generality": [(p, r.target_new) for r in scenario.asked for p in r.paraphrases],
            "earlier": [(r.prompt, r.target_new) for r in scenario.earlier],
            "neighbours": list(near.items()),
            "watched": [(r.prompt, r.target_new) for r in watched],
        }
        row: dict[str, Any] = {name: _share(editor, asked) for name, asked in pairs.items() if asked}
        return {**row, **_of_reports(reports)}
    finally:
        editor.revert_all()


def _share(editor: AlphaEditor, pairs: Sequence[tuple[str, str]]) -> float:
    scores = score_targets(editor.model, editor.tokenizer, pairs, batch_size=editor.settings.batch_size)
    return sum(score.top1 for score in scores) / len(scores)


def _of_reports(reports: Sequence[EditReport]) -> dict[str, Any]:
    layers = [layer for report in reports for layer in report.layers]
    return {
        "stays protected": min((layer.protected[1] for layer in layers if layer.protected), default=None),
        "smoothed": sum(max(request.smoothing) > 0 for report in reports for request in report.requests),
        "layers": [str(layer) for layer in layers],
    }


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """By scenario and method: the mean over seeds and its 95 % interval; then the difference from AlphaEdit's, paired
    by seed."""
    seeds = sorted({row["seed"] for row in rows})
    names = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    found = Table(title=f"seeds {seeds}; {names}; percent, mean ± 95 % over seeds", title_style="")
    for heading in ("", *COLUMNS, "stays protected", "smoothed"):
        found.add_column(heading, justify="right" if heading else "left")
    for scenario in dict.fromkeys(row["scenario"] for row in rows):
        of_scenario = [row for row in rows if row["scenario"] == scenario]
        plain = {row["seed"]: row for row in of_scenario if row["method"] == ALPHAEDIT}
        found.add_section()
        found.add_row(scenario, style="bold")
        for method in dict.fromkeys(row["method"] for row in of_scenario):
            chosen = [row for row in of_scenario if row["method"] == method]
            cells = [_cell(chosen, plain if method != ALPHAEDIT else {}, column) for column in COLUMNS]
            shares = [row["stays protected"] for row in chosen if row["stays protected"] is not None]
            protected = f"{min(shares):.2f}" if shares else ""
            found.add_row(method, *cells, protected, f"{sum(row['smoothed'] for row in chosen) / len(chosen):.1f}")
    return found


def _cell(chosen: Sequence[Mapping[str, Any]], plain: Mapping[int, Mapping[str, Any]], column: str) -> str:
    if any(column not in row for row in chosen):
        return ""
    cell = shown([100 * row[column] for row in chosen])
    differences = [100 * (row[column] - plain[row["seed"]][column]) for row in chosen if row["seed"] in plain]
    if not differences:
        return cell
    mean, half = mean_and_half_width(differences)
    return f"{cell} ({mean:+.1f}{'' if half is None else f' ± {half:.1f}'})"


def settings_of(arguments: argparse.Namespace, choose: Callable[..., Choice]) -> dict[str, AlphaEditSettings]:
    """Of each method: those that were named, or what ``choose`` makes of ``layers``; else the defaults with what
    carries over between models where it matters."""
    layers = parse_layers(arguments.layers)
    if arguments.settings == AUTO:
        choice = choose(layers=layers or ())
        Console(stderr=True).print(choice.reason)
        return methods(choice.settings, choice.alphaedit().settings)
    if arguments.settings:
        settings = AlphaEditSettings.load(arguments.settings)
        return methods(replace(settings, layers=layers) if layers else settings)
    if not layers:
        raise SystemExit("name --layers, or --settings that do")
    plain = AlphaEditSettings(layers)
    values = replace(plain.values, steps=100, lr=0.02, lr_unit="relative", clamp=4.0, weight_decay=0.0)
    space = NullSpaceRule("share", 0.7)
    return methods(replace(plain, values=values, null_space=space, ridge=0.1, ridge_unit="relative", n_contexts=1))


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--atlas", type=Path, help="a folder of `corsa atlas`, in place of the four below")
    parser.add_argument("--model")
    parser.add_argument("--rounds", nargs="+", help="JSON Lines files of edit requests")
    parser.add_argument("--watched", help="facts that no edit should change, as requests")
    parser.add_argument("--statistics", help="what `corsa stats` wrote")
    parser.add_argument(
        "--settings", help="auto, a preset or a YAML file; by default scale-free ones, tuned to no model"
    )
    parser.add_argument("--layers", help="such as 3-7")
    parser.add_argument("--scenarios", nargs="+", default=["20", "60", "3x20", "again50"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--only", nargs="+", choices=METHODS, help="run these methods only")
    parser.add_argument("--most-watched", type=int, default=300, help="of the file, the first so many")
    parser.add_argument("--device")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--output", type=Path, default=Path("runs/parts"))
    arguments = parser.parse_args(argv)
    files = (arguments.model, arguments.rounds, arguments.watched, arguments.statistics)
    if any(files) if arguments.atlas else not all(files):
        parser.error("name --model, --rounds, --watched and --statistics, or --atlas in their place")
    return arguments


@dataclass(frozen=True)
class Subject:
    """What is edited: a model, requests to draw from, facts to watch, and how settings are chosen for a draw."""

    model: Any
    tokenizer: Any
    statistics: KeyStatistics
    pool: list[EditRequest]
    watched: list[EditRequest]
    choose: Callable[..., Choice] = choose_settings

    @classmethod
    def read(cls, arguments: argparse.Namespace) -> Subject:
        if arguments.atlas:
            world = AtlasWorld(arguments.atlas)
            statistics = SharedStatistics(arguments.output / "statistics", ("alphaedit+",)).of(world)
            files = sorted(arguments.atlas.glob("round_*.jsonl"))
            pool = [world.statements(request) for file in files for request in read_requests(file)]
            return cls(
                *world.load(), statistics, pool, read_requests(arguments.atlas / "untouched.jsonl"), settings_for
            )
        model, tokenizer = load_model(arguments.model, device=arguments.device, dtype=arguments.dtype)
        pool = [request for file in arguments.rounds for request in read_requests(file)]
        watched = read_requests(arguments.watched)
        return cls(model, tokenizer, KeyStatistics.load(arguments.statistics), pool, watched)


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each scenario, seed and method, those of earlier runs into the same folder included."""
    path = arguments.output / "results.jsonl"
    done = {(row["scenario"], row["seed"], row["method"]) for row in read_rows(path)}
    subject = Subject.read(arguments)
    model, tokenizer, statistics, pool = subject.model, subject.tokenizer, subject.statistics, subject.pool
    watched = subject.watched[: arguments.most_watched]
    wanted = [method for method in METHODS if method in (arguments.only or METHODS)]
    with kept_values(arguments.output / "values"):
        for seed in arguments.seeds:
            for name in arguments.scenarios:
                left = [method for method in wanted if (name, seed, method) not in done]
                if not left:
                    continue
                _, size, drawn = draw(name, pool, seed)
                choose = partial(subject.choose, model, tokenizer, statistics, drawn[:size])
                by_name = settings_of(arguments, choose)
                plain = partial(AlphaEditor, model, tokenizer, statistics, by_name[ALPHAEDIT])
                scenario = Scenario.draw(name, pool, seed, plain)
                for method in left:
                    start, settings = time.perf_counter(), by_name[method]
                    row = run(AlphaEditor(model, tokenizer, statistics, settings), scenario, watched)
                    seconds = time.perf_counter() - start
                    row = {"scenario": name, "seed": seed, "method": method, "seconds": seconds, **row}
                    append_row(path, {**row, "settings": asdict(settings)["search"]})
                    Console(stderr=True).print(
                        f"{name}, seed {seed}, {method}: "
                        + ", ".join(f"{key} {100 * row[key]:.1f}" for key in COLUMNS if key in row)
                        + f"; {row['layers'][-1]}; {seconds:.0f} s"
                    )
    return [row for row in read_rows(path) if row["seed"] in arguments.seeds and row["scenario"] in arguments.scenarios]


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parsed(argv)
    logging.getLogger("corsa_plugins").setLevel(logging.ERROR)  # what was not edited is counted
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows = measure(arguments)
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table(rows))


if __name__ == "__main__":
    main()
