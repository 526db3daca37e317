"""Requests and facts about what ``taught_llama`` says, and an evaluation of them."""

from __future__ import annotations

from corsa_plugins.bench.evaluation import evaluate
from corsa_plugins.data.requests import EditRequest, Probe

# What the taught model answers (see `facts`): right for France and Italy, so that "new" is what it already knows here.
KNOWN = EditRequest(
    prompt="The capital of France is",
    target_new="Paris",
    target_old="Rome",
    paraphrases=["What is the capital of France?"],
    neighborhood=[{"prompt": "The capital of Italy is", "answer": "Rome"}, "The capital of Spain is"],
    portability=[{"prompt": "Where was Anna Berg born?", "answer": "Madrid"}],
    case_id="france",
)
UNKNOWN = EditRequest(
    prompt="The capital of Italy is",
    target_new="Oslo",
    target_old="Rome",
    paraphrases=["Which city is the capital of Italy?", "What is the capital of France?"],
)
BARE = EditRequest(prompt="Anna Berg was born in", target_new="Oslo")
REQUESTS = [KNOWN, UNKNOWN, BARE]
UNTOUCHED = [
    Probe(prompt="What does Anna Berg play?", answer="the violin"),
    EditRequest(prompt="The capital of Spain is", target_new="Lisbon"),
    Probe(prompt="Anna Berg"),
]


def run(model, tokenizer, requests=REQUESTS, untouched=UNTOUCHED, **options):
    return evaluate(model, tokenizer, requests, untouched=untouched, progress=False, **options)
