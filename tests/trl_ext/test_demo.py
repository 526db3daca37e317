"""The demo's machinery on the shipped testbed, with few edits and few steps."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from peft import PeftModel
from rich.console import Console

from corsa_plugins.evaluation import evaluate, load_evaluation
from corsa_plugins.testbed import load_testbed
from trl_ext import demo, rounds
from trl_ext.rounds import ABLATION, CORSA, LORA_SFT, Job, Method, run_jobs, train_update

SHORT = {"max_steps": 4, "learning_rate": 2e-3}


def test_an_update_moves_the_edited_facts_towards_the_new_answers(tmp_path: Path) -> None:
    testbed = load_testbed()
    requests = testbed.world.edit_rounds(n_rounds=1, size=16, seed=0, untouched=10).rounds[0]
    before = evaluate(testbed.model, testbed.tokenizer, requests, progress=False).summary()
    shares: list[float] = []
    settings = dict(rounds.TESTBED_SETTINGS) | SHORT | {"max_steps": 20}
    trainer = train_update(
        testbed.model, testbed.tokenizer, requests, CORSA, tmp_path, on_step=shares.append, settings=settings
    )
    after = evaluate(trainer.model, testbed.tokenizer, requests, progress=False).summary()
    assert after["log_prob_new"].mean > before["log_prob_new"].mean + 2
    assert after["log_prob_old"].mean < before["log_prob_old"].mean - 2
    assert shares == [pytest.approx((i + 1) / 20) for i in range(20)]
    reloaded = PeftModel.from_pretrained(load_testbed().model, tmp_path)
    again = evaluate(reloaded, testbed.tokenizer, requests, progress=False).summary()
    assert again["log_prob_new"].mean == pytest.approx(after["log_prob_new"].mean, abs=1e-3)


def test_jobs_run_side_by_side_and_leave_what_they_measured(tmp_path: Path) -> None:
    jobs = [
        Job(Method(method.name, {**method.settings, **SHORT}), 0, 6, tmp_path / method.folder)
        for method in (LORA_SFT, CORSA)
    ]
    news: dict[str, list[float]] = {}
    results = list(run_jobs(jobs, lambda job, share, doing: news.setdefault(job.method.name, []).append(share)))
    assert {result.job.method.name for result in results} == {"LoRA SFT", "CoRSA"}
    assert all(shares[-1] == 1.0 and shares == sorted(shares) for shares in news.values())
    for result in results:
        folder = result.job.output
        assert {"adapter_model.safetensors"} <= {path.name for path in (folder / "round-2").iterdir()}
        saved = load_evaluation(folder / "evaluation-first-later")
        assert saved.summary() == result.first_later.summary()
        assert len(saved.records) == 6

    before = evaluate(*_testbed_and_plan(6), progress=False)
    text = io.StringIO()
    console = Console(file=text, width=160)
    console.print(demo.demo_table(before, results, 6))
    console.print(demo.question_table(before, results))
    shown = text.getvalue()
    assert "generality of round 1" in shown
    assert before.records[0].paraphrases[0].prompt.split()[-2] in shown


def _testbed_and_plan(size: int) -> tuple[object, object, object]:
    testbed = load_testbed()
    plan = testbed.world.edit_rounds(n_rounds=2, size=size, seed=0, untouched=500)
    return testbed.model, testbed.tokenizer, plan.rounds[0]


def test_an_error_in_a_job_reaches_the_caller(tmp_path: Path) -> None:
    job = Job(Method("broken", {"sam_rho": -1.0}), 0, 4, tmp_path / "broken")
    with pytest.raises(ValueError, match="sam_rho must be a finite number"):
        list(run_jobs([job]))


def test_the_ablation_switches_off_what_its_names_say() -> None:
    off = {method.name: dict(method.settings) for method in ABLATION}
    assert off["LoRA SFT"] == {"dpo_weight": 0.0, "sam_rho": 0.0}
    assert off["+ DPO + SAM + PCGrad (CoRSA)"] == {}
    assert len({method.folder for method in ABLATION}) == len(ABLATION)
