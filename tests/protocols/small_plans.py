"""Requests about what ``taught_llama`` knows, and the protocols at their smallest."""

from __future__ import annotations

from corsa_plugins.protocols import cross_set_injection, sequential_batches, single_update, temporal_stream
from corsa_plugins.requests import EditRequest, Probe


def _request(subject: str, prompt: str, question: str, old: str, new: str) -> EditRequest:
    return EditRequest(prompt=prompt, target_new=new, target_old=old, subject=subject, paraphrases=(question,))


FRANCE = _request("France", "The capital of France is", "What is the capital of France?", "Paris", "Rome")
ITALY = _request("Italy", "The capital of Italy is", "Which city is the capital of Italy?", "Rome", "Oslo")
BORN = _request("Anna Berg", "Anna Berg was born in", "Where was Anna Berg born?", "Oslo", "Madrid")
FRANCE_AGAIN = _request("France", "The capital of France is", "What is the capital of France?", "Rome", "Madrid")
UNTOUCHED = (Probe(prompt="What does Anna Berg play?", answer="the violin"),)

PLANS = {
    "single update": lambda: single_update([FRANCE, BORN], untouched=UNTOUCHED),
    "cross-set injection": lambda: cross_set_injection([FRANCE, BORN], [ITALY]),
    "temporal stream": lambda: temporal_stream([[FRANCE, ITALY], [FRANCE_AGAIN]], untouched=UNTOUCHED),
    "sequential batches": lambda: sequential_batches([FRANCE, ITALY, BORN], 2),
}
