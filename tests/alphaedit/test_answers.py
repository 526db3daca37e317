"""What a model is asked in an edit: no test prompt decides anything, and nothing is too long to read."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from corsa_plugins.alphaedit import batch
from corsa_plugins.alphaedit.answers import validation_score
from corsa_plugins.data.requests import EditRequest, Probe
from corsa_plugins.model.asking import score_targets
from tests.fixtures.alphaedit import QUICK, REQUESTS, SETTINGS, Bench, prompt_of_length


def validated(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, str]]]:
    """Fills up with the pairs of every validation."""
    seen: list[list[tuple[str, str]]] = []

    def note(model: Any, tokenizer: Any, pairs: Any, settings: Any) -> float:
        seen.append(pairs)
        return validation_score(model, tokenizer, pairs, settings)

    monkeypatch.setattr(batch, "validation_score", note)
    return seen


def test_test_prompts_change_no_weight(llama_bench: Bench) -> None:
    """Paraphrases, neighbourhood and portability are for testing: whatever they hold, the weights are the same."""
    other = llama_bench.copy()
    probes = (Probe(prompt="Rome is the capital of", answer="France"), Probe(prompt="Oslo is in", answer="Spain"))
    tested = [
        request.model_copy(
            update={"paraphrases": ("Name the capital of the French",), "neighborhood": probes, "portability": probes}
        )
        for request in REQUESTS
    ]
    first, second = llama_bench.editor().edit(REQUESTS), other.editor().edit(tested)
    assert any(layer.validation_scores for layer in first.layers)
    assert first == second
    assert llama_bench.holds(other.weights())


def test_validation_prompts_do_matter(gpt2_bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the test above would say nothing: what is validated on decides between smoothed targets."""
    seen = validated(monkeypatch)
    gpt2_bench.editor().edit(REQUESTS, keep=[Probe(prompt="Rome is in", answer="Italy")])
    (pairs,) = {tuple(pairs) for pairs in seen}
    assert ("Spain has the capital", "Kuala Lumpur") in pairs
    assert ("Rome is in", "Italy") in pairs
    assert sum(answer == "Rome" for _, answer in pairs) == 2  # behind the two generated contexts
    assert all(prompt != REQUESTS[0].prompt for prompt, _ in pairs)


def test_without_contexts_the_prompt_validates(llama_bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = validated(monkeypatch)
    subject = llama_bench.editor(replace(QUICK, n_contexts=0, smoothing=replace(SETTINGS.smoothing, share=1.0)))
    subject.edit(REQUESTS[:2], answers=False)
    assert seen[0] == [(request.prompt, request.target_new) for request in REQUESTS[:2]]
    assert subject.state.contexts == ("{}",)


def test_the_score_is_a_share_of_answers_or_a_mean_probability(llama_bench: Bench) -> None:
    known, wrong = ("The capital of France is", "Paris"), ("The capital of France is", "Kuala Lumpur")
    scored = [known, known, wrong]
    given = llama_bench.model, llama_bench.tokenizer, scored
    assert validation_score(*given, replace(SETTINGS, validation_score="accuracy")) == pytest.approx(2 / 3)
    scores = score_targets(*given)
    means = [math.exp(score.log_prob / score.n_tokens) for score in scores]
    found = validation_score(*given, replace(SETTINGS, validation_score="probability"))
    assert found == pytest.approx(sum(means) / 3, rel=1e-5)
    assert found != pytest.approx(2 / 3, rel=1e-5)


def test_answers_for_the_report_stay_within_what_the_model_reads(gpt2_bench: Bench) -> None:
    """GPT-2 has 128 positions; an edit is not to fail for what is only reported."""
    subject = gpt2_bench.editor(replace(QUICK, n_contexts=0))
    long = EditRequest(prompt=prompt_of_length(gpt2_bench, 125), target_new="Rome", subject="France")
    report = subject.edit([long, REQUESTS[1].model_copy(update={"target_new": "Kuala Lumpur and Buenos Aires"})])
    assert all(isinstance(request.answer_after, str) for request in report.requests)
