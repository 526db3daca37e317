"""What an update's report says of all its requests, by every method alike."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.bench.protocols import Method, run_protocol, single_update
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.methods.edit import save_update
from corsa_plugins.methods.effect import (
    EFFECT,
    Effect,
    RequestEffect,
    effect_of,
    read_effect,
    warn_if_few,
    write_report,
)
from corsa_plugins.model.asking import score_targets
from corsa_plugins.report.protocol_page import write_protocol_page
from corsa_plugins.report.sections.effects import EFFECTS, EffectRow
from corsa_plugins.report.sources import read_sources
from tests.fixtures.protocols import CORE
from tests.support.small_plans import BORN, FRANCE, ITALY

KNOWN = EditRequest(prompt="The capital of Spain is", target_new="Madrid")


def effect(taken: int, of: int) -> Effect:
    return Effect(tuple(RequestEffect(n, str(n), n < taken, -1.0, -2.0 if n % 2 else 0.0) for n in range(of)))


def test_the_answers_of_a_model_are_scored_as_they_are_everywhere(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    requests = [FRANCE, KNOWN, BORN]
    random.seed(1)
    torch.manual_seed(1)
    expected = random.random(), torch.rand(2)
    random.seed(1)
    torch.manual_seed(1)
    taught_llama.train()
    found = effect_of(taught_llama, tiny_tokenizer, requests)
    assert taught_llama.training
    assert (random.random(), torch.rand(2).tolist()) == (expected[0], expected[1].tolist())
    new = score_targets(taught_llama, tiny_tokenizer, [(r.prompt, r.target_new) for r in requests])
    old = score_targets(taught_llama, tiny_tokenizer, [(r.prompt, r.target_old) for r in (FRANCE, BORN)])
    assert [r.taken for r in found.requests] == [score.top1 for score in new] == [False, True, False]
    assert [r.log_prob_new for r in found.requests] == pytest.approx([s.log_prob for s in new], abs=1e-4)
    assert [found.requests[n].log_prob_old for n in (0, 2)] == pytest.approx([s.log_prob for s in old], abs=1e-4)
    assert found.requests[1].log_prob_old is None
    assert (found.taken, found.preferred) == (1, 0)


def test_few_is_a_warning_with_figure_and_cure(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="corsa_plugins"):
        few, most = effect(5, 60), effect(54, 60)
        for each in (few, most):
            warn_if_few(each, each.sentence("learned", "raise learning_rate"))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "5 of 60 facts learned (of 30 the new answer is likelier than the old one): raise learning_rate"),
        ("INFO", "54 of 60 facts learned"),
    ]
    assert effect(53, 60).few


def test_a_report_is_json_whatever_the_figures(tmp_path: Path) -> None:
    broken = Effect((RequestEffect(0, "x", False, float("nan"), float("-inf")),))
    write_report(broken.as_dict("nothing"), tmp_path)
    (path,) = tmp_path.iterdir()
    saved = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert saved["requests"][0]["log_prob_new"] is None
    assert read_effect(tmp_path)["text"] == "nothing"
    path.write_text('{"of my own": true}')
    assert read_effect(tmp_path) == read_effect(tmp_path / "elsewhere") == {}


@pytest.mark.parametrize("name", CORE)
def test_every_method_says_how_much_was_taken(
    name: str,
    make: Callable[[str], Method],
    taught_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    saved = save_update(make(name), taught_llama, tiny_tokenizer, [FRANCE, BORN, ITALY], tmp_path / "edited")
    assert saved.model is not None
    edited = LlamaForCausalLM.from_pretrained(saved.model)
    pairs = [(r.prompt, r.target_new) for r in (FRANCE, BORN, ITALY)]
    taken = [score.top1 for score in score_targets(edited, tiny_tokenizer, pairs)]
    told = read_effect(tmp_path / "edited")
    assert (told["taken"], told["of"]) == (sum(taken), 3)
    assert str(told["text"]).startswith(f"{sum(taken)} of 3 requests ")
    assert saved.effect == told["text"]


def test_an_update_that_did_nothing_is_a_note_on_the_page(
    make: Callable[[str], Method],
    taught_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    result = run_protocol(
        make("rsft-merged"), single_update([FRANCE]), taught_llama, tiny_tokenizer, max_new_tokens=5, progress=False
    )
    assert result.reports[1][EFFECT]["taken"] == 0
    page = write_protocol_page(tmp_path / "page.html", [result], asked={}).read_text()
    assert "0 of 1 requests said: " in page.partition("What each update did</h2>")[2]


def test_a_report_shows_it_of_any_update(tmp_path: Path) -> None:
    write_report(effect(5, 60).as_dict("5 of 60 facts learned: raise learning_rate"), tmp_path)
    sources = read_sources([f"mine={tmp_path}"])
    text = "5 of 60 facts learned: raise learning_rate"
    assert sources.parts == {EFFECTS.name: [EffectRow("mine", 5, 60, text)]}
    assert sources.given == {str(tmp_path / "report.json"): f"a report of an update: {text}"}
