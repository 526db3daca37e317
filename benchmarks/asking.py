"""Questions a second: answers and scores by this package beside plain batched passes of the same prompts.

    python -m benchmarks.asking [--model FOLDER] [--chat] [--questions 48] [--repeats 5]

Plain is what is usually written: prompts of similar length in batches, padded on the left, transformers' own
`generate` until all have ended, and one pass of prompt and answer for every answer that is scored, with logits at the
answers alone. Every repeat asks in both ways; the tables give medians of the ratios of processor time. Answers are
compared, and so are scores. Tokens are those that pass through the first block, padding and all.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from corsa_plugins.model.architecture import find_architecture
from corsa_plugins.model.asking import Generation, TargetScore, generate_answers, score_targets
from corsa_plugins.model.borrowing import attribute, hooked
from corsa_plugins.model.shared_reading import SharedReading
from corsa_plugins.testbed import load_testbed


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder; by default the testbed")
    parser.add_argument("--chat", action="store_true", help="ask through the chat template")
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=16, help="longest answer")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    arguments = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    bed = load_testbed()
    model, tokenizer = bed.model, bed.tokenizer
    if arguments.model:
        tokenizer = AutoTokenizer.from_pretrained(arguments.model)
        model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=getattr(torch, arguments.dtype))
    requests = bed.world.edit_rounds(n_rounds=1, size=arguments.questions, seed=0, untouched=0).rounds[0]
    prompts = [request.prompt for request in requests]
    pairs = [(r.prompt, answer) for r in requests for answer in (r.target_new, str(r.target_old))]
    asked: dict[str, Any] = {"batch_size": arguments.batch, "chat_template": arguments.chat}

    def answer() -> list[Generation]:
        return generate_answers(model, tokenizer, prompts, max_new_tokens=arguments.tokens, **asked)

    def score() -> list[TargetScore]:
        return score_targets(model, tokenizer, pairs, **asked)

    table = Table(
        title=f"{len(prompts)} {'questions in a chat' if arguments.chat else 'statements'}, {arguments.tokens} new "
        f"tokens at most; batches of {arguments.batch}; {model.num_parameters() / 1e6:.0f} M parameters, "
        f"{arguments.dtype}; one CPU thread; torch {version('torch')}, transformers {version('transformers')}; medians "
        f"of {arguments.repeats}",
        title_style="",
    )
    for heading in ("", "plain", "shared", "questions a second", "range", "tokens, plain", "shared", "the same"):
        table.add_column(heading, justify="left" if not heading else "right")
    work: dict[str, Callable[[], Sequence[Any]]] = {"answers": answer, "new and old answers scored": score}
    for name, ask in work.items():
        _row(table, name, ask, model, arguments.repeats)
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)


def _row(table: Table, name: str, ask: Callable[[], Sequence[Any]], model: Any, repeats: int) -> None:
    plain, shared = [], []
    with _tokens(model) as read:
        found = ask()
        of_shared = sum(read)
    with _plain(), _tokens(model) as read:
        wanted = ask()
        of_plain = sum(read)
    for _ in range(repeats):
        with _plain():
            plain.append(_timed(ask))
        shared.append(_timed(ask))
    ratios = [a / b for a, b in zip(plain, shared, strict=True)]
    same = sum(_alike(a, b) for a, b in zip(found, wanted, strict=True))
    table.add_row(
        name, f"{statistics.median(plain):.2f} s", f"{statistics.median(shared):.2f} s",
        f"{statistics.median(ratios):.2f} x", f"{min(ratios):.2f} - {max(ratios):.2f}", str(of_plain), str(of_shared),
        f"{same} of {len(found)}",
    )  # fmt: skip


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, Generation):
        return bool(a == b)
    return a.top1 == b.top1 and abs(a.log_prob - b.log_prob) <= 1e-2 * max(1.0, abs(b.log_prob))


@contextmanager
def _plain() -> Iterator[None]:
    with attribute(SharedReading, "LEAST", 10**9):
        yield


@contextmanager
def _tokens(model: Any) -> Iterator[list[int]]:
    read: list[int] = []
    block = find_architecture(model).blocks[0].module

    def count(module: Any, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        read.append(hidden.shape[0] * hidden.shape[1])

    with hooked(block, count):
        yield read


def _timed(ask: Callable[[], Any]) -> float:
    start = time.process_time()
    ask()
    return time.process_time() - start


if __name__ == "__main__":
    main()
