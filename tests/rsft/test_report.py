"""What a run says: the report, the log and the progress bar."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import logging
import sys
import time

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from corsa_plugins.data.requests import EditRequest
from corsa_plugins.model.asking import score_targets
from corsa_plugins.rsft import RSFTSettings, rsft
from tests.support.training import REQUESTS


def test_the_report_tells_what_happened(
    base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    settings = RSFTSettings(layer=1, epochs=3, steps=4, loss_threshold=0.5, loss_reduction="sum", learning_rate=0.02)
    hard = EditRequest(prompt="The capital of France is", target_new="Kuala Lumpur", case_id="hard")
    with caplog.at_level(logging.WARNING):
        report = rsft(base, tiny_tokenizer, [hard, REQUESTS[0], REQUESTS[2]], settings)
    assert "contradict each other" in caplog.text
    scores = score_targets(base, tiny_tokenizer, [(r.prompt, r.target_new) for r in (hard, REQUESTS[0], REQUESTS[2])])
    for sample, score in zip(report.samples, scores, strict=True):
        assert sample.final_loss == pytest.approx(-score.log_prob, abs=1e-4)
        for steps, losses in zip(sample.steps, sample.losses, strict=True):
            stopped = losses[-1] < 0.5
            assert steps == len(losses) - stopped <= 4
            assert all(loss >= 0.5 for loss in losses[:-1])
            assert stopped or steps == 4
    assert report.steps == sum(sum(sample.steps) for sample in report.samples) > 0
    assert set(report.above_in_the_end) == {sample for sample in report.samples if sample.final_loss >= 0.5}
    assert set(report.above_in_the_end)  # one prompt, two answers: the product cannot satisfy both
    assert "case 'hard'" in report.samples[0].name
    assert json.loads(json.dumps(dataclasses.asdict(report)))["epochs"] == report.epochs


def test_a_sample_that_never_gets_there_is_named(
    base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    report = rsft(base, tiny_tokenizer, REQUESTS, RSFTSettings(layer=1, epochs=1, steps=1, learning_rate=1e-9))
    assert report.never_reached == report.samples
    *named, whole = caplog.records
    assert "0 of 3 requests said: 3 not learned (raise learning_rate" in whole.getMessage()
    for request, record in zip(REQUESTS, named, strict=True):
        assert request.prompt in record.getMessage()
        assert "never got under 0.1" in record.getMessage()
    assert "3 never were" in str(report)


def test_the_last_step_counts_too(base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """No check follows it in the run, but the final loss does."""
    settings = RSFTSettings(layer=1, epochs=1, steps=1, learning_rate=1e-3)
    start = rsft(copy.deepcopy(base), tiny_tokenizer, REQUESTS[:1], settings).samples[0].losses[0][0]
    report = rsft(base, tiny_tokenizer, REQUESTS[:1], dataclasses.replace(settings, loss_threshold=start))
    assert report.samples[0].losses == ((start,),)
    assert report.samples[0].final_loss < start
    assert not report.never_reached


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_counts_the_samples_under_tau(
    base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    base.transformer.h[1].register_forward_hook(lambda *args: time.sleep(0.12))  # a bar shows ten times a second
    settings = RSFTSettings(layer=1, epochs=2, steps=1, loss_threshold=1e6)
    shown = {}
    for progress in (False, True):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        rsft(base, tiny_tokenizer, REQUESTS, settings, progress=progress)
        shown[progress] = terminal.getvalue()
    assert shown[False] == ""
    assert "2 of 3 samples under 1e+06" in shown[True]
    assert "2/6" in shown[True]
