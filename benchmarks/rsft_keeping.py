"""What holding what should stay does to R-SFT on a pretrained model: the paper's settings beside ``careful``.

    python -m benchmarks.rsft_keeping --atlas real [--seeds 21 22 23] [--size 12] [--output runs/rsft_keeping]

Each draw of the atlas (``corsa atlas``) is edited by both from the same model, in bfloat16. Asked are statements: the
prompts trained on, other wordings, at most three neighbours of each request, and facts that no edit is about; right is
what is the model's first choice at every token. A stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.intervals import shown
from benchmarks.rows import append_row, read_rows
from corsa_plugins.atlas import Draw, plan_rounds, read_facts
from corsa_plugins.atlas.export import KNOWN, MODEL
from corsa_plugins.model.asking import score_targets
from corsa_plugins.model.loading import load_model
from corsa_plugins.rsft import RSFTSettings, rsft

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SETTINGS = {"the paper's": RSFTSettings(), "careful": RSFTSettings.load("careful")}
COLUMNS = ("efficacy", "other wordings", "neighbours", "untouched", "seconds")
_WATCHED = (100, 80)  # untouched facts that are drawn, and asked

Asked = dict[str, list[tuple[str, str]]]


def shares(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Asked) -> dict[str, float]:
    """Percent right of each kind; 0 of none."""
    return {
        kind: 100 * sum(score.top1 for score in score_targets(model, tokenizer, pairs)) / max(1, len(pairs))
        for kind, pairs in asked.items()
    }


def run(atlas: Path, seeds: Sequence[int], size: int, output: Path) -> list[dict[str, Any]]:
    """Both settings on every draw; rows that are there already are not made again."""
    torch.set_num_threads(1)
    base, tokenizer = load_model(atlas / MODEL, dtype="bfloat16")
    results = output / "results.jsonl"
    for seed in seeds:
        drawn = plan_rounds(read_facts(atlas / KNOWN), Draw(rounds=2, size=size, seed=seed, untouched=_WATCHED[0]))
        requests = list(drawn.rounds[0])
        asked = {
            "efficacy": [(r.prompt, r.target_new) for r in requests],
            "other wordings": [(p, r.target_new) for r in requests for p in r.paraphrases if p[-1:].isalnum()],
            "neighbours": [(p.prompt, p.answer) for r in requests for p in r.neighborhood[:3] if p.answer],
            "untouched": [(fact.prompt, fact.target_new) for fact in drawn.untouched[: _WATCHED[1]]],
        }
        done = {(row["seed"], row["size"], row["settings"]) for row in read_rows(results)}
        for name, settings in SETTINGS.items():
            if (seed, size, name) in done:
                continue
            model, begun = copy.deepcopy(base), time.process_time()
            rsft(model, tokenizer, requests, settings)
            seconds = time.process_time() - begun
            row = {"seed": seed, "size": size, "settings": name, "seconds": seconds}
            append_row(results, {**row, **shares(model, tokenizer, asked)})
    return [row for row in read_rows(results) if row["seed"] in seeds and row["size"] == size]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--atlas", type=Path, required=True, help="a folder of corsa atlas")
    parser.add_argument("--seeds", type=int, nargs="+", default=[21, 22, 23])
    parser.add_argument("--size", type=int, default=12, help="facts that are edited")
    parser.add_argument("--output", type=Path, default=Path("runs/rsft_keeping"))
    asked = parser.parse_args()
    rows = run(asked.atlas, asked.seeds, asked.size, asked.output)
    table = Table("", *COLUMNS, title=f"R-SFT, {asked.size} facts, {len(asked.seeds)} draws")
    for name in SETTINGS:
        own = [row for row in rows if row["settings"] == name]
        table.add_row(name, *(shown([row[column] for row in own]) for column in COLUMNS))
    Console().print(table)


if __name__ == "__main__":
    main()
