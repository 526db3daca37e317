"""What is measured is what its name says."""

from __future__ import annotations

from benchmarks.cost import OURS, PAIRS, _model, make_pairs
from benchmarks.schedule import SCHEDULES, looks
from trl_ext import CoRSAConfig


def test_variants_and_schedules_are_settings_of_the_trainer() -> None:
    for settings in (*OURS.values(), *SCHEDULES.values()):
        CoRSAConfig("out", use_cpu=True, **settings)
    assert (looks("every step (Algorithm 1)"), looks("never")) == (2, 1)
    assert looks("the last quarter") == looks("every fourth step") == 1.25


def test_prompts_are_as_long_as_they_are_said_to_be() -> None:
    _, tokenizer = _model(None, "cpu")
    pairs = make_pairs(42, tokenizer)
    assert len(pairs) == PAIRS
    assert {len(tokenizer(text).input_ids) for text in pairs["prompt"]} == {42}
