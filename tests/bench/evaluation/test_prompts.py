"""How much room an answer is given."""

from __future__ import annotations

from corsa_plugins.bench.evaluation.prompts import answer_length
from corsa_plugins.data.requests import Probe


def test_the_longest_right_answer_fits_into_the_output(tiny_tokenizer):
    long = "Rome on the Tiber in Latium in the middle of Italy"
    plain = Probe(prompt="The capital of Italy is", answer="Oslo")
    aliased = plain.model_copy(update={"aliases": (long,)})
    short, longer = (answer_length(tiny_tokenizer, [probe]) for probe in (plain, aliased))
    assert short < longer == len(tiny_tokenizer(long, add_special_tokens=False)["input_ids"]) + 16
