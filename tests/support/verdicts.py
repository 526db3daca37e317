"""Evaluations of two moments, written by hand."""

from __future__ import annotations

from corsa_plugins.bench.evaluation import Answer, Evaluation, ProbeAnswer, Record


def answer(prompt, new, old):
    return Answer(
        prompt=prompt, output="", says_new=new, says_old=old, top1_new=new, top1_old=old, log_prob_new=0, log_prob_old=0
    )


def probe(prompt, output):
    return ProbeAnswer(prompt=prompt, answer="Rome", output=output)


def evaluation(paraphrases, probes=(), label="model", settings=None, untouched=()):
    """One request for each list of (says_new, says_old); ``probes`` are outputs of the first one's."""
    records = tuple(
        Record(
            index=i,
            case_id=None,
            target_new="Oslo",
            target_old="Rome",
            edit=answer("p", *verdicts[0]),
            paraphrases=tuple(answer(f"p{n}", *v) for n, v in enumerate(verdicts)),
            neighborhood=tuple(probe(f"n{n}", output) for n, output in enumerate(probes if i == 0 else ())),
            portability=(),
        )
        for i, verdicts in enumerate(paraphrases)
    )
    return Evaluation(label, records, tuple(probe("u", output) for output in untouched), settings)


NEW, OLD, NEITHER, BOTH = (True, False), (False, True), (False, False), (True, True)
