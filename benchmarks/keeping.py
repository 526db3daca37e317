"""What a training learns and what it leaves alone, with and without what ends and holds it.

    corsa atlas --output real
    python -m benchmarks.keeping --atlas real --round 2 --size 12

Each training is on the same requests, plain (the paper's options) and with `learned_at` and `keep_weight`. Asked are
the edited prompts, their wordings as statements, one neighbour of each (another subject with the same old answer) and
facts that nothing edits, all as statements: right is an answer whose every token is the model's first choice, which is
how its free answer begins. Kept prompts are made by the model; those that are asked here are left out of them.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from corsa_plugins.corsa.kept import make_kept
from corsa_plugins.data.preferences import to_preference_rows
from corsa_plugins.data.reading import read_requests
from corsa_plugins.model.asking import score_targets
from trl_ext import CoRSAConfig, CoRSATrainer

SFT = {"dpo_weight": 0.0, "sam_rho": 0.0}
HELD = {"learned_at": 0.9, "keep_weight": 1.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "LoRA SFT": SFT,
    "LoRA SFT, ended": SFT | {"learned_at": 0.9},
    "LoRA SFT, ended and held": SFT | HELD,
    "CoRSA": {},
    "CoRSA, ended and held": HELD,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--atlas", type=Path, required=True, help="what `corsa atlas` wrote")
    parser.add_argument("--round", type=int, default=1)
    parser.add_argument("--size", type=int, default=12, help="requests of the round, the first ones")
    parser.add_argument("--untouched", type=int, default=36)
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--epochs", type=int, default=26)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="JSON lines to add to")
    arguments = parser.parse_args()

    folder = arguments.atlas
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    base = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.bfloat16, attn_implementation="eager")
    requests = read_requests(folder / f"round_{arguments.round}.jsonl")[: arguments.size]
    asked = {
        "efficacy": [(r.prompt, r.target_new) for r in requests],
        "wordings": [(p, r.target_new) for r in requests for p in r.paraphrases if "?" not in p],
        "neighbours": [(p.prompt, p.answer) for r in requests for p in r.neighborhood[:1] if p.answer],
        "untouched": [
            (r.prompt, r.target_new) for r in read_requests(folder / "untouched.jsonl")[: arguments.untouched]
        ],
    }
    tell("before", shares(base, tokenizer, asked))
    test = {prompt for pairs in asked.values() for prompt, _ in pairs}
    kept = [each for each in make_kept(base, tokenizer, requests, n=48, seed=arguments.seed) if each.prompt not in test]
    for name in arguments.only:
        started = time.process_time()
        config = CoRSAConfig(
            output_dir=str(folder / "out"), seed=arguments.seed, learning_rate=arguments.rate, bf16=True, use_cpu=True,
            num_train_epochs=arguments.epochs, per_device_train_batch_size=arguments.batch, save_strategy="no",
            gradient_accumulation_steps=1, gradient_checkpointing=False, report_to="none", disable_tqdm=True,
            logging_strategy="no", keep_batch_size=12, **VARIANTS[name],
        )  # fmt: skip
        rows = Dataset.from_list(to_preference_rows(requests))
        trainer = CoRSATrainer(
            copy.deepcopy(base), args=config, train_dataset=rows, processing_class=tokenizer, kept=kept
        )
        trainer.train()
        found = shares(trainer.model, tokenizer, asked) | {
            "steps": trainer.state.global_step, "CPU seconds": time.process_time() - started,
        }  # fmt: skip
        changed, watched = trainer.kept_changed()
        if watched:
            found |= {"watched": watched, "changed": len(changed)}
        tell(name, found)
        if arguments.out:
            with arguments.out.open("a", encoding="utf-8") as file:
                said = {k: str(v) for k, v in vars(arguments).items()}
                file.write(json.dumps({"name": name, "found": found, "asked": said}) + "\n")


def shares(model: Any, tokenizer: Any, asked: dict[str, list[tuple[str, str]]]) -> dict[str, float]:
    """Of each kind of question, how many in a hundred get the answer."""
    found = {}
    for kind, pairs in asked.items():
        scores = score_targets(model, tokenizer, pairs)
        found[kind] = 100 * sum(score.top1 for score in scores) / max(1, len(scores))
    return found


def tell(name: str, found: dict[str, float]) -> None:
    """A line of the table, as it is known."""
    sys.stdout.write(f"{name:26}" + "  ".join(f"{key} {value:.0f}" for key, value in found.items()) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
