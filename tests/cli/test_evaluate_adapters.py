"""``corsa evaluate-adapters`` and ``corsa route``, with adapters that differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.bench.evaluation import load_evaluation
from corsa_plugins.cli.app import main
from corsa_plugins.data.reading import write_requests
from corsa_plugins.data.requests import EditRequest

peft = pytest.importorskip("peft")

PARTS = {
    "capitals": [
        EditRequest(
            prompt=f"The capital of {land} is",
            target_new="Oslo",
            target_old=old,
            paraphrases=[asked],
            neighborhood=[{"prompt": "The capital of Spain is", "answer": "Madrid"}],
        )
        for land, old, asked in (
            ("France", "Paris", "What is the capital of France?"),
            ("Italy", "Rome", "Which city is the capital of Italy?"),
        )
    ],
    "people": [
        EditRequest(
            prompt="Anna Berg was born in",
            target_new="Paris",
            target_old="Oslo",
            paraphrases=["Where was Anna Berg born?"],
        )
    ],
}


@pytest.fixture
def folder(taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A model, an adapter that changes nothing and one that spoils everything; each with its requests."""
    taught_llama.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    torch.manual_seed(0)
    for name, requests in PARTS.items():
        config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=name == "capitals")
        model = peft.get_peft_model(taught_llama, config)
        if name == "people":
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data.normal_(std=0.5)
        model.save_pretrained(tmp_path / name)
        write_requests(tmp_path / name / "requests.jsonl", requests)
        model.unload()
    return tmp_path


def call(folder: Path, command: str, *arguments: str) -> int:
    adapters = [part for name in PARTS for part in ("-a", str(folder / name))]
    given = [command, "-m", str(folder / "model"), *adapters, "--device", "cpu", "-q", "--max-new-tokens", "5"]
    with pytest.raises(SystemExit) as exit_:
        main([*given, *(argument.replace("DIR", str(folder)) for argument in arguments)])
    return int(exit_.value.code or 0)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_routed_true_and_single(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(folder, "evaluate-adapters", "--router", "nearest", "--single", "DIR/people", "-o", "DIR/out") == 0
    shown = capsys.readouterr().out
    assert "Routing accuracy" in shown
    assert "of the gap to one adapter" in shown
    out = folder / "out"
    names = {"report.html", "routed", "true", "single", "routes.jsonl", "routing.json"}
    assert {path.name for path in out.iterdir()} == names  # nothing unfinished, no descriptions

    requests = [request for part in PARTS.values() for request in part]
    true, single, routed = (load_evaluation(out / name) for name in ("true", "single", "routed"))
    for one in (true, single, routed):
        assert [record.edit.prompt for record in one.records] == [request.prompt for request in requests]
    # the first part's adapter changes nothing, and the second, which is the single one too, spoils what it is asked
    assert all(record.edit.says_old for record in true.records[:2])
    assert not any(record.edit.says_old for record in single.records)
    assert true.records[2].edit.output == single.records[2].edit.output

    found, sent = read(out / "routing.json"), rows(out / "routes.jsonl")
    assert found["adapters"] == ["capitals", "people"]
    assert found["chance"] == 0.5
    answered = {"capitals": true, "people": single}
    for row in sent:
        record = routed.records[row["index"]]
        of = getattr(record, "edit" if row["field"] == "prompt" else row["field"])
        answer = of if row["field"] == "prompt" else of[row["number"]]
        assert answer.prompt == row["prompt"]
        if row["true"] == "capitals":
            other = answered[row["chosen"]].records[row["index"]]
            same = other.edit if row["field"] == "prompt" else getattr(other, row["field"])[row["number"]]
            assert answer.output == same.output
    own = [row["true"] == row["chosen"] for row in sent if row["field"] in ("prompt", "paraphrases")]
    assert found["accuracy"]["mean"] == pytest.approx(sum(own) / len(own))  # every request has as many prompts
    page = (out / "report.html").read_text(encoding="utf-8")
    assert f"{100 * found['accuracy']['mean']:.1f}" in page
    assert "Where was Anna Berg born?" in page


def test_descriptions_are_written_edited_and_used(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    question = ("--router", "question", "-o", "DIR/out")
    assert call(folder, "evaluate-adapters", "--describe-only", *question) == 0
    path = folder / "out" / "descriptions.json"
    assert [file.name for file in path.parent.iterdir()] == ["descriptions.json"]
    assert read(path)["people"] == "Anna Berg was born in"

    # with the descriptions exchanged, every question goes where it does not belong if it went right before
    assert call(folder, "evaluate-adapters", *question) == 0
    before = {row["prompt"]: row["chosen"] for row in rows(folder / "out" / "routes.jsonl")}
    texts = read(path)
    path.write_text(json.dumps({"capitals": texts["people"], "people": texts["capitals"]}))
    capsys.readouterr()
    assert call(folder, "evaluate-adapters", *question) == 0
    assert f"using the descriptions of {path}" in capsys.readouterr().out
    after = {row["prompt"]: row["chosen"] for row in rows(folder / "out" / "routes.jsonl")}
    assert set(before.values()) == {"capitals", "people"}
    assert all(before[prompt] != after[prompt] for prompt in before)
    other_way_round = dict(reversed(read(path).items()))  # the names count, not the order
    (folder / "mine.json").write_text(json.dumps(other_way_round))
    path.unlink()
    call(folder, "evaluate-adapters", *question, "--descriptions", "DIR/mine.json")
    assert {row["prompt"]: row["chosen"] for row in rows(folder / "out" / "routes.jsonl")} == after
    assert call(folder, "evaluate-adapters", *question, "--describe", "prompts") == 0
    assert read(path) == texts


def test_questions_are_answered_by_the_adapter_that_is_chosen(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("The capital of France is", "Anna Berg was born in")
    assert call(folder, "route", "--router", "nearest", *asked) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if any(question in line for question in asked)]
    first, second = sorted(lines, key=lambda line: asked[1] in line)
    assert "capitals" in first
    assert "Paris" in first  # the adapter that changes nothing
    assert "people" in second
    assert "Oslo" not in second  # the one that spoils everything
    (folder / "d.json").write_text('{"capitals": "France", "people": "Anna"}')
    for name in PARTS:
        (folder / name / "requests.jsonl").unlink()
    assert call(folder, "route", "--descriptions", "DIR/d.json", *asked) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--requests", "DIR/people/requests.jsonl"], "1 files of requests for 2 adapters"),
        (["-a", "DIR/people"], "name each adapter once"),
        (["--describe-only"], "--describe-only needs --output"),
        (["--describe-only", "--router", "nearest", "-o", "DIR/out"], "a router that reads descriptions"),
        (["--router", "nearest", "--describe", "prompts"], "nearest reads no descriptions"),
        (["--descriptions", "DIR/none.json"], "none.json: no such file"),
        (["--descriptions", "DIR/wrong.json"], "a description for each of capitals, people"),
        (["--descriptions", "DIR/broken.json"], "broken.json is not JSON"),
        (["--descriptions", "DIR/wrong.json", "--describe", "prompts"], "give one"),
        (["--router", "question", "--calibrate"], "--calibrate goes with --router label"),
        (["--layer", "1"], "--layer goes with --router nearest"),
        (["-a", "DIR/model"], "model: no requests.jsonl beside the adapter"),
    ],
)
def test_wrong_usage_is_one_line_before_any_model_is_loaded(
    folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "model" / "model.safetensors").write_text("no weights")
    (folder / "wrong.json").write_text('{"capitals": "x"}')
    (folder / "broken.json").write_text("{")
    assert call(folder, "evaluate-adapters", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_an_adapter_that_is_none_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "people" / "adapter_config.json").unlink()
    assert call(folder, "evaluate-adapters") == 2
    assert f"adapter {folder / 'people'} cannot be put on the model" in capsys.readouterr().err
