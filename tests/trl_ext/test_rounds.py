"""Updates on the shipped testbed, with few edits and few steps."""

from __future__ import annotations

from pathlib import Path

import pytest
from peft import PeftModel

from corsa_plugins.bench.evaluation import evaluate
from corsa_plugins.testbed import load_testbed
from trl_ext import rounds
from trl_ext.rounds import ABLATION, CORSA, train_update


def test_an_update_moves_the_edited_facts_towards_the_new_answers(tmp_path: Path) -> None:
    testbed = load_testbed()
    requests = testbed.world.edit_rounds(n_rounds=1, size=16, seed=0, untouched=10).rounds[0]
    before = evaluate(testbed.model, testbed.tokenizer, requests, progress=False).summary()
    settings = dict(rounds.TESTBED_SETTINGS) | {"max_steps": 20, "learning_rate": 2e-3}
    trainer = train_update(testbed.model, testbed.tokenizer, requests, CORSA, tmp_path, settings=settings)
    after = evaluate(trainer.model, testbed.tokenizer, requests, progress=False).summary()
    assert after["log_prob_new"].mean > before["log_prob_new"].mean + 2
    assert after["log_prob_old"].mean < before["log_prob_old"].mean - 2
    reloaded = PeftModel.from_pretrained(load_testbed().model, tmp_path)
    again = evaluate(reloaded, testbed.tokenizer, requests, progress=False).summary()
    assert again["log_prob_new"].mean == pytest.approx(after["log_prob_new"].mean, abs=1e-3)


def test_the_ablation_switches_off_what_its_names_say() -> None:
    off = {method.name: dict(method.settings) for method in ABLATION}
    assert off["LoRA SFT"] == {"dpo_weight": 0.0, "sam_rho": 0.0}
    assert off["+ DPO + SAM + PCGrad (CoRSA)"] == {}
    assert len({method.folder for method in ABLATION}) == len(ABLATION)
