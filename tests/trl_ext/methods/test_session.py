"""Updates on the shipped testbed, with few edits and few steps."""

from __future__ import annotations

from pathlib import Path

import pytest
from peft import PeftModel

from corsa_plugins.bench.evaluation import evaluate
from corsa_plugins.testbed import load_testbed
from trl_ext.methods import AdapterSettings, corsa
from trl_ext.methods.settings import TESTBED_SETTINGS


def test_an_update_moves_the_edited_facts_towards_the_new_answers(tmp_path: Path) -> None:
    testbed = load_testbed()
    requests = testbed.world.edit_rounds(n_rounds=1, size=16, seed=0, untouched=10).rounds[0]
    before = evaluate(testbed.model, testbed.tokenizer, requests, progress=False).summary()
    method = corsa(AdapterSettings(TESTBED_SETTINGS | {"max_steps": 20, "learning_rate": 2e-3}))
    model = method.start(testbed.model, testbed.tokenizer, seed=0).train(requests, tmp_path)
    after = evaluate(model, testbed.tokenizer, requests, progress=False).summary()
    assert after["log_prob_new"].mean > before["log_prob_new"].mean + 2
    assert after["log_prob_old"].mean < before["log_prob_old"].mean - 2
    reloaded = PeftModel.from_pretrained(load_testbed().model, tmp_path)
    again = evaluate(reloaded, testbed.tokenizer, requests, progress=False).summary()
    assert again["log_prob_new"].mean == pytest.approx(after["log_prob_new"].mean, abs=1e-3)
