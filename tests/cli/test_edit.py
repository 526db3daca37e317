"""``corsa edit`` and ``corsa diagnose`` as a user calls them, on the testbed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from corsa_plugins.alphaedit import EditState
from corsa_plugins.cli.app import main
from corsa_plugins.data.reading import write_requests
from corsa_plugins.testbed import load_testbed
from tests.fixtures.alphaedit import TestbedBench


def _run(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    return int(exit_.value.code or 0)


@pytest.fixture
def files(testbed_bench: TestbedBench, tmp_path: Path) -> Path:
    testbed_bench.statistics.save(tmp_path / "stats")
    write_requests(tmp_path / "first.jsonl", testbed_bench.requests[:3])
    write_requests(tmp_path / "second.jsonl", testbed_bench.requests[3:5])
    return tmp_path


def _down(folder: Path) -> torch.Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    return model.model.layers[0].mlp.down_proj.weight.detach()


def test_edit_go_on_and_take_back(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load_testbed().path
    same = ("--statistics", files / "stats", "--settings", "testbed", "--quiet")
    assert _run("edit", "--model", model, "--requests", files / "first.jsonl", *same, "--output", files / "one") == 0
    assert "3 of 3 requests edited" in capsys.readouterr().out
    report = json.loads((files / "one" / "report.json").read_text())
    assert [request["edited"] for request in report["requests"]] == [True] * 3
    assert report["settings"]["layers"] == [0]
    original = _down(Path(model))
    assert not torch.equal(_down(files / "one" / "model"), original)

    # on, from the edited model; and from the original one, on which the state is put first
    for number, start in enumerate((files / "one" / "model", model)):
        two = files / f"two{number}"
        code = _run(
            "edit", "--model", start, "--state", files / "one", "--requests", files / "second.jsonl", *same,
            "--output", two, "--name", "second",
        )  # fmt: skip
        assert code == 0
        assert [batch.name for batch in EditState.load(two / "state").batches] == ["1", "second"]
    assert torch.equal(_down(files / "two0" / "model"), _down(files / "two1" / "model"))

    back = ("--state", files / "two0", "--revert", "1", "--revert", "second", "--output", files / "back")
    assert _run("edit", "--model", files / "two0" / "model", *back) == 0
    assert torch.equal(_down(files / "back" / "model"), original)
    assert "batches in force: none" in capsys.readouterr().out


def test_a_delta_alone(files: Path) -> None:
    model = load_testbed().path
    code = _run(
        "edit", "--model", model, "--requests", files / "first.jsonl", "--statistics", files / "stats",
        "--settings", "testbed", "--delta-only", "--output", files / "delta", "--quiet", "--method", "alphaedit",
    )  # fmt: skip
    assert code == 0
    assert sorted(path.name for path in (files / "delta").iterdir()) == ["report.json", "state"]
    results = files / "results"
    evaluated = ("--requests", files / "first.jsonl", "--output", results, "--quiet")
    assert _run("evaluate", "--model", model, "--edited", files / "delta", *evaluated) == 0
    summary = json.loads((results / "summary.json").read_text())
    assert summary["metrics"]["efficacy"]["mean"] >= 0.5
    assert json.loads((results / "baseline" / "summary.json").read_text())["metrics"]["efficacy"]["mean"] == 0
    settings = EditState.load(files / "delta" / "state").batches[0].settings
    assert settings.search is None
    # the settings are those of the last batch; the method is still the one that is asked for
    for method, searches in (("alphaedit", False), ("alphaedit+", False)):
        code = _run(
            "edit", "--model", model, "--state", files / "delta", "--requests", files / "second.jsonl", "--statistics",
            files / "stats", "--delta-only", "--output", files / method, "--quiet", "--method", method,
        )  # fmt: skip
        assert code == 0
        assert (EditState.load(files / method / "state").batches[-1].settings.search is not None) == searches
    code = _run("edit", "--model", model, "--state", files / "delta", "--revert", "all", "--output", files / "none")
    assert code == 0
    assert torch.equal(_down(files / "none" / "model"), _down(Path(model)))


def test_diagnose(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load_testbed().path
    (files / "narrow.yaml").write_text("layers: [0]\nnull_space: {by: threshold, value: 1.0e-30}\n")
    code = _run(
        "diagnose", "--model", model, "--requests", files / "first.jsonl", "--statistics", files / "stats",
        "--settings", files / "narrow.yaml", "--output", files / "foresight", "--quiet",
    )  # fmt: skip
    assert code == 2
    assert "null space" in capsys.readouterr().err
    code = _run(
        "diagnose", "--model", model, "--requests", files / "first.jsonl", "--statistics", files / "stats",
        "--settings", "testbed", "--values", "--output", files / "foresight", "--quiet",
    )  # fmt: skip
    assert code == 0
    assert "mean conflicts of 3 requests" in capsys.readouterr().out
    rows = [json.loads(line) for line in (files / "foresight" / "diagnosis.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    assert all(0 <= row["batch_conflict"] <= 1 and 0 <= row["value_probability"] <= 1 for row in rows)
    assert (files / "foresight" / "diagnosis.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--output", "x"), "nothing to do"),
        (("--requests", "R", "--output", "x"), "needs --statistics"),
        (("--revert", "1", "--output", "x"), "needs --state"),
        (("--requests", "R", "--statistics", "S", "--output", "F"), "not an empty folder"),
        (("--requests", "R", "--statistics", "S", "--output", "x"), "which layers?"),
        (("--requests", "R", "--statistics", "S", "--output", "x", "--layers", "a"), "give numbers"),
        (("--requests", "R", "--statistics", "S", "--output", "x", "--settings", "nope"), "nor a preset"),
        (("--requests", "R", "--statistics", "S", "--output", "x", "--layers", "0", "--method", "m"), "alphaedit"),
        (("--requests", "R", "--statistics", "F", "--output", "x", "--layers", "0"), "statistics"),
        (("--requests", "R", "--statistics", "S", "--output", "x", "--layers", "0", "--name", "all"), "name is 'all'"),
        (("--requests", "R", "--statistics", "S", "--output", "R", "--layers", "0"), "not an empty folder"),
        (("--requests", "R", "--statistics", "S", "--output", "R/x/y", "--layers", "0"), "no folder that can be"),
    ],
)
def test_wrong_usage(files: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str) -> None:
    known = {
        "R/x/y": files / "first.jsonl" / "x" / "y",
        "R": files / "first.jsonl",
        "S": files / "stats",
        "F": files / "full",
        "x": files / "x",
    }
    (files / "full").mkdir()
    (files / "full" / "file").write_text("")
    assert _run("edit", "--model", load_testbed().path, *(known.get(a, a) for a in arguments)) == 2
    assert message in capsys.readouterr().err
    assert not (files / "x").exists()
