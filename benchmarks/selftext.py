"""What a model's own text is worth as the text of key statistics, beside text that somebody wrote.

    python -m benchmarks.selftext --atlas real --output runs/selftext [--tokens 20000] [--layers 3-7] [--edits 40]

The null space of AlphaEdit is made from the keys of some text. Compared are text that the model samples (temperature
1); docstrings of Python's standard library, which are on every machine; and half of each, of the same size together.
With each, AlphaEdit makes the edits of an atlas (``corsa atlas``), all parts of AlphaEdit+ off. Reported are what it
edits and what it keeps, asked as statements; and the share of the energy of the docstrings' keys that the null space
leaves open, which needs no edit. Seeds draw other rounds of the atlas and other text.
"""

from __future__ import annotations

import argparse
import ast
import json
import logging
import random
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.intervals import shown
from corsa_plugins.alphaedit import (
    AlphaEditor,
    AlphaEditSettings,
    KeyStatistics,
    NullSpaceRule,
    ValueSettings,
    collect_statistics,
)
from corsa_plugins.atlas import Draw, Fact, Rounds, plan_rounds
from corsa_plugins.atlas.export import MODEL
from corsa_plugins.bench.evaluation import evaluate
from corsa_plugins.cli.values import parse_layers
from corsa_plugins.files import atomic_write_text
from corsa_plugins.model.loading import load_model
from corsa_plugins.model.sampling import sample_texts

NULL_SPACE = NullSpaceRule("share", 0.7)
COLUMNS = ("efficacy", "generality", "neighbours", "untouched", "same subject")


def docstrings(seed: int) -> Iterator[str]:
    """Docstrings of the standard library of at least 200 characters, in an order of the seed."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    random.Random(seed).shuffle(files)
    for file in files:
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node)
                if text and len(text) >= 200:
                    yield text


def known_facts(atlas: Path) -> list[Fact]:
    """The facts of an atlas, as the model spells them."""
    facts = []
    for line in (atlas / "known.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        names = ("relation", "subject", "answer")
        lists = (tuple(row.get(name, ())) for name in ("aliases", "statements", "questions"))
        facts.append(Fact(*(row[name] for name in names), *lists))
    return facts


def settings_of(layers: Sequence[int]) -> AlphaEditSettings:
    """AlphaEdit, scale-free: nothing here is tuned to one of the texts."""
    values = ValueSettings(steps=25, lr=0.5, lr_unit="relative")
    return AlphaEditSettings(
        tuple(layers), null_space=NULL_SPACE, values=values, ridge=0.1, ridge_unit="relative"
    ).alphaedit()


def outcome(
    model: Any, tokenizer: Any, statistics: KeyStatistics, plan: Rounds, layers: Sequence[int]
) -> dict[str, float]:
    """Shares of what is edited and kept, with the edits of one round in force; they are taken back afterwards."""
    editor = AlphaEditor(model, tokenizer, statistics, settings_of(layers))
    editor.edit(plan.rounds[0], name="edits")
    edited = evaluate(model, tokenizer, plan.rounds[0], progress=False).summary()
    shares = [edited[name].mean for name in ("efficacy", "generality", "specificity")]
    for watched in (plan.untouched, plan.same_subject):
        shares.append(evaluate(model, tokenizer, watched, progress=False).summary()["efficacy"].mean)
    editor.revert("edits")
    return dict(zip(COLUMNS, map(float, shares), strict=True))


def leaks(statistics: dict[str, KeyStatistics], layers: Sequence[int]) -> dict[str, float]:
    """For the null space of each text: the share of the energy of the docstrings' keys that it leaves open."""
    shares: dict[str, float] = {}
    for name, each in statistics.items():
        open_shares = []
        for layer in layers:
            keys = statistics["docstrings"].sample(layer).double()
            space = each.null_space(layer, NULL_SPACE)
            inside = space.coordinates(keys, NULL_SPACE.count(each.eigenvalues(layer)))
            open_shares.append(float(inside.square().sum() / keys.square().sum()))
        shares[name] = sum(open_shares) / len(open_shares)
    return shares


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each text and seed."""
    model, tokenizer = load_model(arguments.atlas / MODEL, device=arguments.device)
    layers = parse_layers(arguments.layers) or ()
    rows = []
    for seed in range(arguments.seeds):
        plan = plan_rounds(known_facts(arguments.atlas), Draw(1, arguments.edits, seed, arguments.untouched))
        journal = arguments.output / f"self_{seed}.jsonl"
        own = sample_texts(model, tokenizer, arguments.tokens, seed=seed, journal=journal, progress=True)
        half = sample_texts(model, tokenizer, arguments.tokens // 2, seed=seed, journal=journal)
        texts = {"own": own, "docstrings": list(docstrings(seed))}
        collected = {name: _collect(model, tokenizer, text, layers, arguments.tokens) for name, text in texts.items()}
        mixed = [*half, *texts["docstrings"]]
        collected["half of each"] = _collect(model, tokenizer, mixed, layers, arguments.tokens)
        open_shares = leaks(collected, layers)
        for name, statistics in collected.items():
            result = outcome(model, tokenizer, statistics, plan, layers)
            rows.append({"text": name, "seed": seed, **result, "docstrings left open": open_shares[name]})
            atomic_write_text(arguments.output / "rows.json", json.dumps(rows, indent=1))
    return rows


def _collect(model: Any, tokenizer: Any, texts: Sequence[str], layers: Sequence[int], tokens: int) -> KeyStatistics:
    return collect_statistics(model, tokenizer, texts, layers, n_tokens=tokens, length=128, progress=True)


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Means over seeds, in per cent."""
    columns = (*COLUMNS, "docstrings left open")
    shown_as = Table("text", *columns, title="AlphaEdit with the null space of a text, %")
    for name in dict.fromkeys(row["text"] for row in rows):
        values = [[row[column] for row in rows if row["text"] == name] for column in columns]
        shown_as.add_row(name, *(shown(each, 100) for each in values))
    return shown_as


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--atlas", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--layers", default="3-7")
    parser.add_argument("--edits", type=int, default=40)
    parser.add_argument("--untouched", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--device")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    torch.manual_seed(0)
    Console().print(table(run(arguments)))


if __name__ == "__main__":
    main()
