"""Edits of quantised models on the testbed: made on the quantised model, and made on the full one for it.

    python -m benchmarks.quantised [--kinds int8 int4 nf4 llm-int8] [--seeds 3 4 5] [--size 20] [--output DIR]

Every kind is one batch of AlphaEdit+, beside weights that stay as they are. *On it*: statistics, keys and values are
the quantised model's own. *For it*: the edits of the full model, exported as a LoRA adapter, which PEFT puts on the
quantised one. An answer counts if every one of its tokens is the most likely one. A stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.intervals import shown
from benchmarks.rows import append_row, read_rows
from corsa_plugins.adapters import export_state
from corsa_plugins.alphaedit import AlphaEditor, AlphaEditSettings, KeyStatistics, collect_statistics
from corsa_plugins.model.loading import load_model, put_adapters
from corsa_plugins.model.quantised import QUANTISED, is_quantised, stored_parts
from corsa_plugins.testbed import load_testbed
from corsa_plugins.testbed.checks import greedy_matches
from corsa_plugins.testbed.corpus import facts_as_text
from corsa_plugins.testbed.edits import EditPlan

FULL = "float32"
COLUMNS = ("efficacy", "generality", "neighbours", "untouched", "untouched before", "seconds")
_UNTOUCHED = 200


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=list(QUANTISED), choices=QUANTISED)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--size", type=int, default=20, help="facts of the batch")
    parser.add_argument("--output", type=Path, default=Path("runs/quantised"))
    asked = parser.parse_args(argv)
    logging.getLogger("corsa_plugins").setLevel(logging.ERROR)  # what was not edited is counted below
    asked.output.mkdir(parents=True, exist_ok=True)
    results = asked.output / "results.jsonl"
    done = {(row["kind"], row["way"], row["seed"]) for row in read_rows(results) if row["size"] == asked.size}
    for kind in (FULL, *asked.kinds):
        if any((kind, way, seed) not in done for way in _ways(kind) for seed in asked.seeds):
            for row in runs(kind, asked.seeds, asked.size, asked.output / "adapters", done):
                append_row(results, row)
    rows = [row for row in read_rows(results) if row["size"] == asked.size and row["seed"] in asked.seeds]
    Console(width=160).print(table(rows, (FULL, *asked.kinds)))


def runs(
    kind: str, seeds: Sequence[int], size: int, adapters: Path, done: set[tuple[str, str, int]]
) -> Iterator[dict[str, Any]]:
    """A row for each way and seed that is not done yet; the full model leaves its edits as ``adapters/SEED-SIZE``."""
    bed = load_testbed()
    settings = AlphaEditSettings.load("testbed")
    model, tokenizer = load_model(bed.path, device="cpu", dtype=kind)
    known: KeyStatistics | None = None
    for seed in seeds:
        plan = bed.world.edit_rounds(n_rounds=1, size=size, seed=seed, untouched=_UNTOUCHED)
        name = adapters / f"{seed}-{size}"
        before = shares(model, tokenizer, plan)["untouched"]
        same = {"kind": kind, "seed": seed, "size": size, "untouched before": before, "bytes": weight_bytes(model)}
        if (kind, "on it", seed) not in done:
            known = known or collect_statistics(
                model, tokenizer, list(facts_as_text(bed.world)), settings.layers, n_tokens=10**6, pack=False,
                batch_size=64,
            )  # fmt: skip
            editor, begun = AlphaEditor(model, tokenizer, known, settings), time.process_time()
            editor.edit(plan.rounds[0], answers=False)
            seconds = time.process_time() - begun
            yield {**same, "way": "on it", "seconds": seconds, **shares(model, tokenizer, plan)}
            if kind == FULL and not name.exists():
                export_state(editor.state, name)
            editor.revert_all()
        if kind != FULL and (kind, "for it", seed) not in done:
            served = put_adapters(load_model(bed.path, device="cpu", dtype=kind)[0], {"edits": name})
            yield {**same, "way": "for it", **shares(served, tokenizer, plan)}


@torch.no_grad()
def shares(model: Any, tokenizer: Any, plan: EditPlan) -> dict[str, float]:
    """Percent right of each kind."""
    requests = plan.rounds[0]
    edited = {request.prompt for request in requests}
    asked = {
        "efficacy": [(r.prompt, r.target_new) for r in requests],
        "generality": [(p, r.target_new) for r in requests for p in r.paraphrases],
        "neighbours": [(p.prompt, str(p.answer)) for r in requests for p in r.neighborhood if p.prompt not in edited],
        "untouched": [(r.prompt, r.target_new) for r in plan.untouched],
    }
    found = {}
    for kind, pairs in asked.items():
        right = greedy_matches(model, tokenizer, *zip(*pairs, strict=True))
        found[kind] = 100 * sum(right) / len(right)
    return found


def weight_bytes(model: torch.nn.Module) -> int:
    """Of the weights of its linear maps, the head left out, as they are stored."""
    head = getattr(model, "lm_head", None)
    maps = [module for module in model.modules() if hasattr(module, "in_features") and module is not head]
    return sum(
        sum(part.nbytes for part in stored_parts(module).values()) if is_quantised(module) else module.weight.nbytes
        for module in maps
    )


def _ways(kind: str) -> tuple[str, ...]:
    return ("on it",) if kind == FULL else ("on it", "for it")


def table(rows: Sequence[dict[str, Any]], kinds: Sequence[str]) -> Table:
    """A row for each kind and way: means over seeds with 95 % intervals, in percent."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    found = Table("", "made", "bytes of weights", *COLUMNS, title=f"Testbed, one batch; {packages}", title_style="")
    full = next((row["bytes"] for row in rows if row["kind"] == FULL), None)
    for kind in kinds:
        for way in _ways(kind):
            own = [row for row in rows if (row["kind"], row["way"]) == (kind, way)]
            if own:
                size = f"{own[0]['bytes'] / full:.2f}" if full else str(own[0]["bytes"])
                cells = [shown([row[key] for row in own]) if key in own[0] else "" for key in COLUMNS]
                found.add_row(kind, way if kind != FULL else "", size, *cells)
    return found


if __name__ == "__main__":
    main()
