"""``corsa evaluate-adapters``, with adapters that differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from corsa_plugins.bench.evaluation import load_evaluation
from tests.support.adapters import PARTS
from tests.support.command import Command


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_routed_true_and_single(adapters_folder: Path, corsa_with_adapters: Command) -> None:
    done = corsa_with_adapters("evaluate-adapters", "--router", "nearest", "--single", "DIR/people", "-o", "DIR/out")
    assert done.exit_code == 0
    assert "Routing accuracy" in done.output
    assert "of the gap to one adapter" in done.output
    out = adapters_folder / "out"
    names = {"report.html", "routed", "true", "single", "routes.jsonl", "routing.json"}
    assert {path.name for path in out.iterdir()} == names  # nothing unfinished, no descriptions

    requests = [request for part in PARTS.values() for request in part]
    true, single, routed = (load_evaluation(out / name) for name in ("true", "single", "routed"))
    for evaluation in (true, single, routed):
        assert [record.edit.prompt for record in evaluation.records] == [request.prompt for request in requests]
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


def test_descriptions_are_written_edited_and_used(adapters_folder: Path, corsa_with_adapters: Command) -> None:
    question = ("--router", "question", "-o", "DIR/out")
    assert corsa_with_adapters("evaluate-adapters", "--describe-only", *question).exit_code == 0
    path = adapters_folder / "out" / "descriptions.json"
    assert [file.name for file in path.parent.iterdir()] == ["descriptions.json"]
    assert read(path)["people"] == "Anna Berg was born in"

    # with the descriptions exchanged, every question goes where it does not belong if it went right before
    assert corsa_with_adapters("evaluate-adapters", *question).exit_code == 0
    before = {row["prompt"]: row["chosen"] for row in rows(adapters_folder / "out" / "routes.jsonl")}
    texts = read(path)
    path.write_text(json.dumps({"capitals": texts["people"], "people": texts["capitals"]}))
    assert f"using the descriptions of {path}" in corsa_with_adapters("evaluate-adapters", *question).output
    after = {row["prompt"]: row["chosen"] for row in rows(adapters_folder / "out" / "routes.jsonl")}
    assert set(before.values()) == {"capitals", "people"}
    assert all(before[prompt] != after[prompt] for prompt in before)
    other_way_round = dict(reversed(read(path).items()))  # the names count, not the order
    (adapters_folder / "mine.json").write_text(json.dumps(other_way_round))
    path.unlink()
    corsa_with_adapters("evaluate-adapters", *question, "--descriptions", "DIR/mine.json")
    assert {row["prompt"]: row["chosen"] for row in rows(adapters_folder / "out" / "routes.jsonl")} == after
    assert corsa_with_adapters("evaluate-adapters", *question, "--describe", "prompts").exit_code == 0
    assert read(path) == texts


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
    adapters_folder: Path, arguments: list[str], message: str, corsa_with_adapters: Command
) -> None:
    (adapters_folder / "model" / "model.safetensors").write_text("no weights")
    (adapters_folder / "wrong.json").write_text('{"capitals": "x"}')
    (adapters_folder / "broken.json").write_text("{")
    refused = corsa_with_adapters("evaluate-adapters", *arguments)
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert not (adapters_folder / "out").exists()


def test_an_adapter_that_is_none_is_named(adapters_folder: Path, corsa_with_adapters: Command) -> None:
    (adapters_folder / "people" / "adapter_config.json").unlink()
    refused = corsa_with_adapters("evaluate-adapters")
    assert refused.exit_code == 2
    assert f"adapter {adapters_folder / 'people'} cannot be put on the model" in refused.stderr
