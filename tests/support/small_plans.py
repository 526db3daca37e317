"""Requests about what ``taught_llama`` knows, and the protocols at their smallest."""

from __future__ import annotations

from corsa_plugins.bench.evaluation import Answer, Evaluation, ProbeAnswer, Record
from corsa_plugins.bench.protocols import (
    ProtocolResult,
    cross_set_injection,
    sequential_batches,
    single_update,
    temporal_stream,
)
from corsa_plugins.data.requests import EditRequest, Probe


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


def made_up_result(method: str, shift: int, size: int = 24) -> ProtocolResult:
    """A stream of two rounds in which every moment, set and metric has a share of its own, which ``shift`` moves."""
    rounds = [
        [_request(f"{number}.{n}", f"{number}.{n} is", f"{number}.{n}?", "old", "new") for n in range(size)]
        for number in "12"
    ]
    facts = tuple(Probe(prompt=f"fact {n}", answer="right") for n in range(size))
    plan = temporal_stream(rounds, untouched=facts)
    counts = iter(range(shift, size + 1))
    evaluations = {}
    for moment, name in ((0, "round 1"), (0, "round 2"), (1, "round 1"), (2, "round 1"), (2, "round 2")):
        edited, asked, old = (next(counts) for _ in range(3))
        records = []
        for n, request in enumerate(rounds[int(name[-1]) - 1]):
            edit = _answer(request.prompt, new=n < edited, old=False)
            paraphrase = _answer(request.paraphrases[0], new=n < asked, old=n < old)
            records.append(
                Record(
                    index=n, case_id=n, target_new="new", target_old="old", edit=edit, paraphrases=(paraphrase,),
                    neighborhood=(), portability=(),
                )
            )  # fmt: skip
        evaluations[moment, name] = Evaluation(f"{name} at {moment}", tuple(records))
    for moment in range(3):
        right = next(counts)
        answers = tuple(
            ProbeAnswer(prompt=fact.prompt or "", answer="right", output="", says_answer=n < right, top1=n < right)
            for n, fact in enumerate(facts)
        )
        evaluations[moment, "untouched"] = Evaluation(f"untouched at {moment}", (), answers)
    return ProtocolResult(plan, method, evaluations, (1.0, 2.0))


def _answer(prompt: str, *, new: bool, old: bool) -> Answer:
    return Answer(
        prompt=prompt, output="", says_new=new, says_old=old, top1_new=new, top1_old=old, log_prob_new=-1.0,
        log_prob_old=-2.0,
    )  # fmt: skip
