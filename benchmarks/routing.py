"""Several adapters against one (papers/corsa.md, B.2, Table 8) on the testbed, and the routers that choose among them.

    python -m benchmarks.routing [--seeds 3 4 5] [--output runs/routing]

A round of 100 edits, once on a single adapter and once in five parts of an adapter each: consecutive edits, in which
every part is about all relations, and edits of one relation each. Every prompt, of a probe too, is answered by the
adapter that it is routed to. All adapters train in batches of 4 instead of the testbed's 16, or those of 20 edits would
take too few steps to learn them; the other settings are the testbed's. A seed decides which facts are edited to what,
the adapters' initial values, and the order of the data. Results are appended to `results.jsonl` as they come; a stopped
run goes on where it was.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

from benchmarks.intervals import shown
from benchmarks.rows import append_row, read_rows
from corsa_plugins.bench.evaluation import Evaluation, evaluate
from corsa_plugins.bench.evaluation.metrics import Shown, select_metrics
from corsa_plugins.bench.evaluation.prompts import answer_length
from corsa_plugins.bench.routing.accuracy import routing_accuracy, routing_share_of_gap
from corsa_plugins.bench.routing.adapters import load_adapters
from corsa_plugins.bench.routing.descriptions import list_prompts, list_subjects
from corsa_plugins.bench.routing.evaluation import evaluate_routed
from corsa_plugins.bench.routing.label import NEUTRAL, LabelRouter
from corsa_plugins.bench.routing.nearest import NearestRouter
from corsa_plugins.bench.routing.parts import request_template, split_requests
from corsa_plugins.bench.routing.question import QuestionRouter
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.testbed import load_testbed
from trl_ext.methods import AdapterSettings, LoraMethod, corsa, lora_sft
from trl_ext.methods.settings import TESTBED_SETTINGS

SPLITS: dict[str, Callable[[Sequence[EditRequest]], list[list[EditRequest]]]] = {
    "in order": lambda requests: split_requests(requests, 5),
    "by relation": lambda requests: split_requests(requests, request_template),
}
SETTINGS = AdapterSettings({**TESTBED_SETTINGS, "gradient_accumulation_steps": 1})
METHODS = (lora_sft(SETTINGS), corsa(SETTINGS))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--output", type=Path, default=Path("runs/routing"))
    parser.add_argument("--size", type=int, default=100, help="edits")
    arguments = parser.parse_args(argv)
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the frameworks, about each other
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("corsa_plugins").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "results.jsonl"
    done = {_key(row) for row in read_rows(path)}
    console = Console()
    for make in (method_rows, router_rows):
        for seed in arguments.seeds:
            for row in make(seed, arguments.size, arguments.output / f"seed-{seed}", done):
                append_row(path, row)
                console.print(", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{v}" for k, v in row.items()))
    rows = [row for row in read_rows(path) if row["seed"] in arguments.seeds]
    wide = console if console.is_terminal else Console(width=200)
    wide.print(adapters_table(rows))
    wide.print(routers_table(rows))


def method_rows(seed: int, size: int, output: Path, done: set[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """What a single adapter and several answer, with the true choice and with the nearest request's."""
    for method in METHODS:
        folder = output / method.name.lower().replace(" ", "-")
        requests = _requests(seed, size)
        length = answer_length(load_testbed().tokenizer, requests)
        row: dict[str, Any] = {"what": "one adapter", "split": "", "method": method.name, "seed": seed}
        if _key(row) not in done:
            model = _train(requests, method, folder / "all", seed)
            tokenizer = load_testbed().tokenizer
            yield row | _means(evaluate(model, tokenizer, requests, max_new_tokens=length, progress=False))
        for split, parts in ((name, by(requests)) for name, by in SPLITS.items()):
            wanted = [
                {"what": what, "split": split, "method": method.name, "seed": seed}
                for what in ("true choice", "nearest")
            ]
            if all(_key(row) in done for row in wanted):
                continue
            folders = [folder / split.replace(" ", "-") / f"part-{n}" for n in range(1, len(parts) + 1)]
            for part, place in zip(parts, folders, strict=True):
                _train(part, method, place, seed)
            testbed = load_testbed()
            model, names = load_adapters(testbed.model, folders)
            for row, router in zip(wanted, (None, NearestRouter(model, testbed.tokenizer, parts)), strict=True):
                found = evaluate_routed(
                    model, testbed.tokenizer, parts, names, router, max_new_tokens=length, progress=False
                )
                yield row | {"accuracy": found.accuracy.mean} | _means(found.evaluation)


def _train(requests: Sequence[EditRequest], method: LoraMethod, folder: Path, seed: int) -> Any:
    testbed = load_testbed()
    return method.start(testbed.model, testbed.tokenizer, seed=seed).train(requests, folder)


def router_rows(seed: int, size: int, output: Path, done: set[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """Accuracy of every router on edit prompts and on paraphrases. It rests on the base model alone."""
    requests = _requests(seed, size)
    testbed = load_testbed()
    ask = (testbed.model, testbed.tokenizer)
    for split, parts in ((name, by(requests)) for name, by in SPLITS.items()):
        # The testbed reads 256 tokens: there is no room for more in a list of five descriptions.
        routers: dict[str, Callable[[], Any]] = {
            "nearest request": lambda parts=parts: NearestRouter(*ask, parts),
            "question behind prompts": lambda parts=parts: QuestionRouter(*ask, [list_prompts(p) for p in parts]),
            "question behind subjects": lambda parts=parts: QuestionRouter(*ask, [list_subjects(p) for p in parts]),
            "label behind prompts": lambda parts=parts: LabelRouter(*ask, [list_prompts(p, 3) for p in parts]),
            "label behind subjects": lambda parts=parts: LabelRouter(*ask, [list_subjects(p, 5) for p in parts]),
        }
        for name, make in routers.items():
            row: dict[str, Any] = {"what": name, "split": split, "method": "router", "seed": seed}
            if _key(row) in done:
                continue
            router = make()
            asked = [(place, index, prompt) for place, part in enumerate(parts) for index, prompt in _edits(part)]
            others = [(place, index, prompt) for place, part in enumerate(parts) for index, prompt in _questions(part)]
            scores = [router.scores([prompt for *_, prompt in group]) for group in (asked, others)]
            yield row | _accuracies(scores, (asked, others), len(parts))
            if name.startswith("label"):
                bias = [sum(column) / len(NEUTRAL) for column in zip(*router.scores(NEUTRAL), strict=True)]
                less = [[[s - b for s, b in zip(line, bias, strict=True)] for line in group] for group in scores]
                yield row | {"what": f"{name}, calibrated"} | _accuracies(less, (asked, others), len(parts))


def _edits(part: Sequence[EditRequest]) -> list[tuple[str, str]]:
    return [(request.prompt, request.prompt) for request in part]


def _questions(part: Sequence[EditRequest]) -> list[tuple[str, str]]:
    return [(request.prompt, prompt) for request in part for prompt in request.paraphrases]


def _accuracies(
    scores: Sequence[Sequence[Sequence[float]]], asked: Sequence[Sequence[tuple[int, str, str]]], parts: int
) -> dict[str, float]:
    chosen = [[max(range(parts), key=line.__getitem__) for line in group] for group in scores]
    found = [
        routing_accuracy(routes, [place for place, *_ in group], [unit for _, unit, _ in group]).mean
        for routes, group in zip(chosen, asked, strict=True)
    ]
    return {"on edit prompts": found[0], "on paraphrases": found[1], "chance": 1 / parts}


def _requests(seed: int, size: int) -> list[EditRequest]:
    return load_testbed().world.edit_rounds(n_rounds=1, size=size, seed=seed, untouched=500).rounds[0]


def _means(evaluation: Evaluation) -> dict[str, float]:
    summary = evaluation.summary()
    compared = select_metrics(shown=Shown.COMPARED)
    return {metric.name: summary[metric.name].mean for metric in compared if metric.name in summary}


def adapters_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Mean over seeds with the half-width of its 95 % interval, in percent."""
    seeds = sorted({row["seed"] for row in rows})
    table = Table(title=f"Testbed, 100 edits, one adapter and five, seeds {seeds}", title_style="")
    table.add_column("percent, mean ± 95 % over seeds")
    metrics = [metric for metric in select_metrics(shown=Shown.COMPARED) if all(metric.name in row for row in rows)]
    headings = [metric.heading for metric in metrics]
    for heading in ("routing accuracy", *headings, "share of the gap in generality lost by routing"):
        table.add_column(heading, justify="right")
    for method in (method.name for method in METHODS):
        for split, what in (("", "one adapter"), *((s, w) for s in SPLITS for w in ("true choice", "nearest"))):
            chosen = _of(rows, method, split, what)
            if not chosen:
                continue
            accuracy = shown([row["accuracy"] for row in chosen], 100) if what == "nearest" else ""
            gaps = _gaps(rows, method, split) if what == "nearest" else []
            cells = [shown([row[metric.name] for row in chosen], 100) for metric in metrics]
            name = ", ".join(part for part in (method, split, what) if part)
            table.add_row(name, accuracy, *cells, shown(gaps, 100) if gaps else "")
    return table


def _gaps(rows: Sequence[dict[str, Any]], method: str, split: str) -> list[float]:
    """For each seed in which several adapters with routed choice answer less than a single one."""
    found = []
    for seed in sorted({row["seed"] for row in rows}):
        of_seed = [row for row in rows if row["seed"] == seed]
        means = [
            row["generality"]
            for what, where in (("one adapter", ""), ("true choice", split), ("nearest", split))
            for row in _of(of_seed, method, where, what)
        ]
        share = routing_share_of_gap(*means) if len(means) == 3 else None
        if share is not None:
            found.append(share)
    return found


def _of(rows: Sequence[dict[str, Any]], method: str, split: str, what: str) -> list[dict[str, Any]]:
    return [row for row in rows if (row["method"], row["split"], row["what"]) == (method, split, what)]


def routers_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Share of questions sent to the right one of five adapters, in percent."""
    own = [row for row in rows if row["method"] == "router"]
    table = Table(title="Routing accuracy by router, of the base model, 20 % by chance", title_style="")
    table.add_column("percent, mean ± 95 % over seeds")
    for split in SPLITS:
        for kind in ("edit prompts", "paraphrases"):
            table.add_column(f"{split}: {kind}", justify="right")
    for what in dict.fromkeys(row["what"] for row in own):
        cells = []
        for split in SPLITS:
            chosen = _of(own, "router", split, what)
            cells += [
                shown([row[f"on {kind}"] for row in chosen], 100) if chosen else ""
                for kind in ("edit prompts", "paraphrases")
            ]
        table.add_row(what, *cells)
    return table


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["what"], row["split"], row["method"], row["seed"]


if __name__ == "__main__":
    main()
