"""A model and its baseline, measured from Python as by the command."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from corsa_plugins.bench.evaluation import evaluate, load_evaluation
from corsa_plugins.bench.measure import BASELINE, UNFINISHED, Questions, Subject, measure
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError
from corsa_plugins.report.evaluation_page import save_measurement

QUESTIONS = Questions(
    [EditRequest(prompt="The capital of France is", target_new="Oslo", target_old="Paris")],
    max_new_tokens=4,
    progress=False,
)


@pytest.fixture
def home(tmp_path: Path, taught_llama, tiny_tokenizer) -> Path:
    """A model, and an adapter of it that spoils what it says."""
    peft = pytest.importorskip("peft")
    taught_llama.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    adapted = peft.get_peft_model(taught_llama, peft.LoraConfig(r=2, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=1.0)
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path


def test_an_adapter_and_the_model_below_it(home: Path, tiny_tokenizer) -> None:
    subject = Subject(str(home / "model"), adapter=str(home / "adapter"), baseline=str(home / "model"))
    measurement = measure(subject, QUESTIONS, folder=home / "results", device="cpu")
    base = AutoModelForCausalLM.from_pretrained(home / "model")
    expected = evaluate(base, tiny_tokenizer, QUESTIONS.requests, max_new_tokens=4, progress=False)
    before, after = measurement.measured
    assert (before.evaluation.label, after.evaluation.label) == ("model", "adapter")
    assert before.evaluation.records[0].edit.output == expected.records[0].edit.output
    assert after.evaluation.values("log_prob_new") != expected.values("log_prob_new")
    assert not measurement.before_is_saved
    for folder in (home / "results", home / "results" / BASELINE):
        assert (folder / UNFINISHED).exists()

    save_measurement(measurement, home / "results", asked={"by": "a test"})
    assert load_evaluation(home / "results") == after.evaluation
    assert load_evaluation(home / "results" / BASELINE) == before.evaluation
    assert not list(home.rglob(UNFINISHED))
    assert "a test" in (home / "results" / "report.html").read_text(encoding="utf-8")

    # what is saved is a baseline too, and is not measured or written again
    again = Subject(str(home / "model"), baseline=str(home / "results" / BASELINE), label="again")
    compared = measure(again, QUESTIONS, device="cpu")
    assert compared.before_is_saved
    assert compared.before == before
    save_measurement(compared, home / "again", asked={})
    assert not (home / "again" / BASELINE).exists()
    with pytest.raises(SettingError, match="holds the baseline, which would be lost"):
        measure(again, QUESTIONS, folder=home / "results" / BASELINE)


def test_without_a_baseline_there_is_one_model(home: Path) -> None:
    measurement = measure(Subject(str(home / "model")), QUESTIONS, device="cpu")
    assert measurement.before is None
    assert measurement.measured == [measurement.after]
