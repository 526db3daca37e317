"""How often a search for the text finds an answer that is not given (:mod:`corsa_plugins.data.answers`).

A model that is *not* edited is asked every prompt of edit requests, plain and in chat, and its answers are searched for
``target_new`` and ``target_old`` in three ways: as text, as words, and as the whole of the answer. What the first finds
and the second does not is printed, to be judged by eye::

    corsa atlas --model M -o rounds
    python -m benchmarks.said --model M -r rounds/round_1.jsonl -r rounds/round_2.jsonl -o runs/said
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from corsa_plugins.atlas.answers import Answers, Question, identity_of
from corsa_plugins.data.answers import contains_answer, contains_text, is_answer
from corsa_plugins.data.reading import read_requests
from corsa_plugins.model.asking import cut_answer
from corsa_plugins.model.loading import load_model

TOKENS = 32


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("-r", "--requests", type=Path, action="append", required=True)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/said"))
    parser.add_argument("--dtype", default="auto")
    arguments = parser.parse_args()
    requests = [request for path in arguments.requests for request in read_requests(path)]
    table = Table("asked", "looked for", "answers", "as text", "as words", "exactly", "as text alone")
    apart = []
    source = {**identity_of(arguments.model), "dtype": arguments.dtype}
    with Answers(
        arguments.output / "answers.jsonl", source, lambda: load_model(arguments.model, dtype=arguments.dtype)
    ) as answers:
        for chat in (False, True):
            asked = [(request, prompt) for request in requests for prompt in (request.prompt, *request.paraphrases)]
            texts = answers.ask([Question(prompt, chat) for _, prompt in asked], TOKENS)
            for target in ("target_new", "target_old"):
                counts = dict.fromkeys(("text", "words", "exactly", "apart"), 0)
                pairs = [(text if chat else cut_answer(text), getattr(request, target)) for text, (request, _) in
                         zip(texts, asked, strict=True)]  # fmt: skip
                for text, wanted in [(text, wanted) for text, wanted in pairs if wanted]:
                    found = contains_text(text, wanted), contains_answer(text, wanted)
                    counts["text"] += found[0]
                    counts["words"] += found[1]
                    counts["exactly"] += is_answer(text, wanted)
                    counts["apart"] += found[0] != found[1]
                    if found[0] != found[1]:
                        apart.append(f"{wanted}: {text}")
                table.add_row("in chat" if chat else "plain", target, str(len(pairs)), *map(str, counts.values()))
    console = Console()
    console.print(table)
    console.print("Found as text alone:", *(f"  {escape(line)}" for line in apart), sep="\n")


if __name__ == "__main__":
    main()
