"""``corsa evaluate``: what a model answers, against what, and how a stopped evaluation goes on."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from corsa_plugins.bench.evaluation import load_evaluation
from corsa_plugins.bench.measure import Questions
from corsa_plugins.cli.values import place_one
from corsa_plugins.errors import SettingError
from corsa_plugins.model import asking as inference
from corsa_plugins.model.processes import Processes
from tests.support import several


def test_it_measures_and_writes_what_it_measured(corsa, world):
    result = corsa(
        "evaluate", "--model", world / "model", "--requests", world / "requests.jsonl",
        "--untouched", world / "untouched.jsonl", "--output", world / "results", "--label", "taught",
        "--device", "cpu", "--quiet",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (row,) = [line for line in result.output.splitlines() if "Efficacy, %" in line]
    assert "50.0" in row
    saved = load_evaluation(world / "results")
    assert saved.values("efficacy") == [1, 0]
    assert saved.values("untouched") == [1]
    assert saved.label == "taught"


def test_no_other_command_replaces_its_page(corsa, world):
    given = ["--model", world / "model", "--requests", world / "requests.jsonl", "--device", "cpu", "--quiet"]
    assert corsa("evaluate", *given, "--output", world / "results").exit_code == 0
    page = (world / "results" / "report.html").read_bytes()
    for command in (["protocol", "single", *given, "--method", "rsft"], ["demo"]):
        result = corsa(*command, "--output", world / "results")
        assert result.exit_code == 2
        assert "holds results of corsa evaluate (records.jsonl), whose report.html would be replaced" in result.stderr
    assert (world / "results" / "report.html").read_bytes() == page
    assert corsa("evaluate", *given, "--output", world / "results").exit_code == 0  # its own goes on, or is made again


def test_an_adapter_is_compared_with_its_own_base(corsa, world, taught_llama):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(taught_llama, peft.LoraConfig(r=2, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=1.0)
    model.save_pretrained(world / "adapter")
    arguments = [
        "evaluate", "--model", world / "model", "--adapter", world / "adapter", "--baseline", world / "model",
        "--requests", world / "requests.jsonl", "--output", world / "results", "--device", "cpu", "--quiet",
    ]  # fmt: skip
    result = corsa(*arguments)
    assert result.exit_code == 0, result.output
    before, after = load_evaluation(world / "results" / "baseline"), load_evaluation(world / "results")
    assert (before.label, after.label) == ("model", "adapter")
    assert before.values("efficacy") == [1, 0]
    assert after.values("log_prob_new") != before.values("log_prob_new")
    # results that are there already serve as a baseline too
    again = corsa(*arguments[:6], world / "results" / "baseline", *arguments[7:9], "--device", "cpu", "--quiet")
    assert again.exit_code == 0, again.output
    assert [line for line in again.output.splitlines() if "%" in line] == [
        line for line in result.output.splitlines() if "%" in line
    ]


def test_an_edited_model_is_compared_with_the_model(corsa, world, taught_llama, tiny_tokenizer):
    with torch.no_grad():
        taught_llama.lm_head.weight.mul_(-1)
    taught_llama.save_pretrained(world / "edited")
    tiny_tokenizer.save_pretrained(world / "edited")
    arguments = [
        "evaluate", "--model", world / "model", "--edited", world / "edited", "--requests",
        world / "requests.jsonl", "--untouched", world / "untouched.jsonl", "--device", "cpu", "--quiet",
    ]  # fmt: skip
    result = corsa(*arguments, "--output", world / "results", "--fluency-tokens", "8")
    assert result.exit_code == 0, result.stderr
    summary = json.loads((world / "results" / "summary.json").read_text())
    assert (summary["label"], summary["baseline"]) == ("edited", "model")
    assert summary["change"]["efficacy"]["mean"] == -0.5
    assert summary["two_moments"]["untouched_locality"]["mean"] == 0
    assert summary["settings"]["fluency_tokens"] == 8
    page = (world / "results" / "report.html").read_text()
    assert "The capital of France is" in page
    assert str(world / "edited") in page
    later = corsa(*arguments, "--baseline", world / "results", "--later", "--output", world / "later")
    assert later.exit_code == 0, later.stderr
    assert "Fluency" not in later.stderr
    moments = json.loads((world / "later" / "summary.json").read_text())["two_moments"]
    assert "locality" not in moments
    assert moments["forgetting_edit_prompt"]["mean"] == 0


def test_an_interrupted_evaluation_goes_on(corsa, world, monkeypatch):
    arguments = [
        "evaluate", "--model", world / "model", "--requests", world / "requests.jsonl", "--untouched",
        world / "untouched.jsonl", "--output", world / "results", "--batch-size", "1", "--device", "cpu", "--quiet",
    ]  # fmt: skip
    real, calls = inference.score_targets, []

    def interrupted(model, tokenizer, pairs, **options):
        calls.append(pairs)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(model, tokenizer, pairs, **options)

    monkeypatch.setattr(sys.modules["corsa_plugins.bench.evaluation.evaluate"], "score_targets", interrupted)
    stopped = corsa(*arguments)
    assert (stopped.exit_code, stopped.stderr) == (130, "error: interrupted\n")
    assert not (world / "results" / "summary.json").exists()
    assert (world / "results" / "unfinished.jsonl").exists()
    second = corsa(*arguments)
    assert second.exit_code == 0, second.stderr
    assert calls[2] == calls[1], "what was finished was asked again"
    assert sorted(path.name for path in (world / "results").iterdir()) == [
        "records.jsonl", "report.html", "summary.json", "untouched.jsonl",
    ]  # fmt: skip
    assert load_evaluation(world / "results").values("efficacy") == [1, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--later": ""}, "--later needs --baseline"),
        ({"--edited": "model", "--adapter": "x"}, "--edited and --adapter"),
        ({"--requests": "missing.jsonl"}, "missing.jsonl: no such file"),
        ({"--model": "./nowhere"}, "model ./nowhere: no such folder"),
        ({"--adapter": "./nowhere"}, "adapter ./nowhere: no such folder"),
        ({"--adapter": "model"}, "cannot be put on"),
        ({"--model": "site"}, "no config.json in this folder; name the folder of a saved model"),
        ({"--model": "."}, "no config.json in this folder; did you mean model?"),
        ({"--device": "abacus"}, "device is 'abacus'"),
        ({"--dtype": "float3"}, "dtype is 'float3'"),
        ({"--batch-size": "0"}, "--batch-size"),
        ({"--max-new-tokens": "0"}, "--max-new-tokens"),
        ({"--output": "requests.jsonl"}, "requests.jsonl is a file"),
        ({"--requests": None}, "nothing to evaluate"),
        ({"--chat-template": ""}, "no chat template"),
    ],
)
def test_what_the_user_can_mend_is_one_message_and_exit_code_2(corsa, world, monkeypatch, change, message):
    if "--adapter" in change:
        pytest.importorskip("peft")
    monkeypatch.chdir(world)
    (world / "site").mkdir()
    options = {"--model": "model", "--requests": "requests.jsonl", "--device": "cpu", "--quiet": "", **change}
    arguments = [part for name, value in options.items() if value is not None for part in (name, value) if part]
    result = corsa("evaluate", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.lower().count("error: ") == 1
    assert "Traceback" not in result.output + result.stderr


def test_two_processes_ask_what_one_does(corsa, world):
    arguments = [
        "evaluate", "--model", world / "model", "--requests", world / "requests.jsonl", "--untouched",
        world / "untouched.jsonl", "--device", "cpu", "--quiet", "--batch-size", "1", "--output",
    ]  # fmt: skip
    assert corsa(*arguments, world / "one").exit_code == 0
    shared = several.together("corsa_plugins.cli", *map(str, [*arguments, world / "two"]))
    assert shared.returncode == 0, shared.stderr[-3000:]
    assert shared.stdout.count("written to") == 1
    for name in ("records.jsonl", "untouched.jsonl"):
        assert (world / "two" / name).read_text() == (world / "one" / name).read_text()
    one, two = (load_evaluation(world / name).summary() for name in ("one", "two"))
    assert one == two
    assert not (world / "two" / "unfinished.jsonl").exists()


def test_what_several_processes_cannot_share_is_refused():
    two = Processes(1, 2)
    with pytest.raises(SettingError, match=r"--harness .* without a launcher"):
        Questions(harness=object(), processes=two)
    with pytest.raises(SettingError, match=r"--device-map auto .* without a launcher"):
        place_one(two, None, "auto")
