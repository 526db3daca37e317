"""What is asked of every model alike, and what a saved baseline was asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from corsa_plugins.bench.evaluation import ReportError, evaluate, save_evaluation
from corsa_plugins.bench.measure import UNFINISHED, Questions
from corsa_plugins.data.requests import EditRequest, Probe
from corsa_plugins.errors import SettingError

REQUESTS = [EditRequest(prompt="The capital of France is", target_new="Oslo", target_old="Paris")]
FACTS = [Probe(prompt="The capital of Spain is", answer="Madrid")]


def test_it_asks_what_an_evaluation_asks(taught_llama, tiny_tokenizer, tmp_path: Path) -> None:
    questions = Questions(REQUESTS, FACTS, max_new_tokens=5, fluency_tokens=6, progress=False)
    measured = questions.ask(taught_llama, tiny_tokenizer, "taught", tmp_path)
    assert measured.evaluation == evaluate(
        taught_llama, tiny_tokenizer, REQUESTS, untouched=FACTS, label="taught", max_new_tokens=5, fluency_tokens=6,
        progress=False,
    )  # fmt: skip
    assert measured.ability is None
    assert (tmp_path / UNFINISHED).exists()
    assert questions.title == "1 requests, 1 untouched facts"


def test_nothing_to_ask_is_refused() -> None:
    with pytest.raises(SettingError, match="nothing to evaluate: give --requests, --untouched, or both; or --harness"):
        Questions()


def test_a_saved_baseline_was_asked_the_same(taught_llama, tiny_tokenizer, tmp_path: Path) -> None:
    asked = Questions(REQUESTS, FACTS, max_new_tokens=5, progress=False)
    saved = asked.ask(taught_llama, tiny_tokenizer, "then").evaluation
    save_evaluation(saved, tmp_path)
    assert asked.read(saved, tmp_path).evaluation == saved
    # answers are as long as they were, unless another length is asked for
    later = Questions(REQUESTS, FACTS, progress=False)
    assert later.like(saved) == Questions(REQUESTS, FACTS, max_new_tokens=5, progress=False)
    assert Questions(REQUESTS, FACTS, max_new_tokens=7).like(saved).max_new_tokens == 7
    for other in (
        Questions(REQUESTS, max_new_tokens=5),
        Questions([], FACTS, max_new_tokens=5),
        Questions(REQUESTS, FACTS, max_new_tokens=7),
        Questions(REQUESTS, FACTS, max_new_tokens=5, chat_template=True),
    ):
        with pytest.raises(ReportError, match=f"--baseline {tmp_path}: 'then'"):
            other.read(saved, tmp_path)
