"""``corsa edit`` as a user calls it, on the testbed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from corsa_plugins.alphaedit import EditState
from corsa_plugins.alphaedit.auto.kept import KEPT
from corsa_plugins.cli.app import main
from corsa_plugins.data.reading import read_requests, write_requests
from corsa_plugins.methods.registry import method_spec, method_specs
from corsa_plugins.testbed import load_testbed
from tests.fixtures.alphaedit import TestbedBench


def _run(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    return int(exit_.value.code or 0)


def _down(folder: Path) -> torch.Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    return model.model.layers[0].mlp.down_proj.weight.detach()


def test_edit_go_on_and_take_back(edits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load_testbed().path
    same = ("--statistics", edits / "stats", "--settings", "testbed", "--quiet")
    assert _run("edit", "--model", model, "--requests", edits / "first.jsonl", *same, "--output", edits / "one") == 0
    assert "3 of 3 requests edited" in capsys.readouterr().out
    report = json.loads((edits / "one" / "report.json").read_text())
    assert [request["edited"] for request in report["requests"]] == [True] * 3
    assert report["settings"]["layers"] == [0]
    original = _down(Path(model))
    assert not torch.equal(_down(edits / "one" / "model"), original)

    # on, from the edited model; and from the original one, on which the state is put first
    for number, start in enumerate((edits / "one" / "model", model)):
        two = edits / f"two{number}"
        code = _run(
            "edit", "--model", start, "--state", edits / "one", "--requests", edits / "second.jsonl", *same,
            "--output", two, "--name", "second",
        )  # fmt: skip
        assert code == 0
        assert [batch.name for batch in EditState.load(two / "state").batches] == ["1", "second"]
    assert torch.equal(_down(edits / "two0" / "model"), _down(edits / "two1" / "model"))

    back = ("--state", edits / "two0", "--revert", "1", "--revert", "second", "--output", edits / "back")
    assert _run("edit", "--model", edits / "two0" / "model", *back) == 0
    assert torch.equal(_down(edits / "back" / "model"), original)
    assert "batches in force: none" in capsys.readouterr().out


def test_a_delta_alone(edits: Path) -> None:
    model = load_testbed().path
    code = _run(
        "edit", "--model", model, "--requests", edits / "first.jsonl", "--statistics", edits / "stats",
        "--settings", "testbed", "--layers", "0-0", "--delta-only", "--output",
        edits / "delta", "--quiet", "--method", "alphaedit",
    )  # fmt: skip
    assert code == 0
    assert sorted(path.name for path in (edits / "delta").iterdir()) == [
        "README.md", "manifest.json", "report.json", "state"
    ]  # fmt: skip
    results = edits / "results"
    evaluated = ("--requests", edits / "first.jsonl", "--output", results, "--quiet")
    assert _run("evaluate", "--model", model, "--edited", edits / "delta", *evaluated) == 0
    summary = json.loads((results / "summary.json").read_text())
    assert summary["metrics"]["efficacy"]["mean"] >= 0.5
    assert json.loads((results / "baseline" / "summary.json").read_text())["metrics"]["efficacy"]["mean"] == 0
    settings = EditState.load(edits / "delta" / "state").batches[0].settings
    assert settings.search is None
    # the settings are those of the last batch; the method is still the one that is asked for
    for method, searches in (("alphaedit", False), ("alphaedit+", False)):
        code = _run(
            "edit", "--model", model, "--state", edits / "delta", "--requests", edits / "second.jsonl", "--statistics",
            edits / "stats", "--delta-only", "--output", edits / method, "--quiet", "--method", method,
        )  # fmt: skip
        assert code == 0
        assert (EditState.load(edits / method / "state").batches[-1].settings.search is not None) == searches
    code = _run("edit", "--model", model, "--state", edits / "delta", "--revert", "all", "--output", edits / "none")
    assert code == 0
    assert torch.equal(_down(edits / "none" / "model"), _down(Path(model)))


@pytest.mark.parametrize("name", [spec.name for spec in method_specs() if hasattr(spec.settings_class(), "of")])
def test_every_method_of_the_editor(
    edits: Path, testbed_bench: TestbedBench, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kind: Any = method_spec(name).settings_class()
    settings = kind.of(kind.load("testbed"))
    values = replace(
        settings.values, steps=2, chat_template=False, stop_most_probable=min(settings.values.stop_most_probable, 1)
    )
    quick = replace(settings, layers=(0,), values=values)
    (edits / "quick.yaml").write_text(json.dumps(quick.as_dict()), encoding="utf-8")  # YAML reads it
    given = ("--requests", edits / "first.jsonl", "--statistics", edits / "stats", "--settings", edits / "quick.yaml")
    model, output = load_testbed().path, edits / "edited"
    assert _run("edit", "--model", model, "--method", name, *given, "--output", output, "--quiet") == 0
    said = capsys.readouterr().out
    assert "batches in force: 1" in said
    assert "for good" not in said, "a batch of these can be taken out again"
    assert EditState.load(output / "state").batches[0].settings == quick
    testbed_bench.editor(quick).edit(read_requests(edits / "first.jsonl"))
    assert torch.equal(_down(output / "model"), testbed_bench.weight())
    back = ("--state", output, "--revert", "1", "--method", name, "--output", edits / "back")
    assert _run("edit", "--model", output / "model", *back) == 0
    assert torch.equal(_down(edits / "back" / "model"), _down(Path(model)))
    assert not torch.equal(_down(output / "model"), _down(Path(model)))


def test_edits_that_cannot_be_reverted_are_said_to_stay_before_they_are_made(
    edits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (edits / "short.yaml").write_text("{layer: 2, epochs: 1, append_eos: false}")
    model = load_testbed().path
    given = ("--requests", edits / "first.jsonl", "--settings", edits / "short.yaml", "--quiet")
    assert _run("edit", "--model", model, "--method", "locft-bf", *given, "--output", edits / "trained") == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == (
        "locft-bf changes the weights for good: in what is written these edits cannot be reverted, alone or together; "
        f"{model} itself stays as it is"
    )
    assert last == f"written to {edits / 'trained'}: model"


def test_a_method_that_changes_no_weight_says_where_its_edits_are(
    edits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--method", "in-context", "--requests", edits / "first.jsonl", "--output", edits / "told", "--quiet")
    assert _run("edit", "--model", load_testbed().path, *arguments) == 0
    said = capsys.readouterr().out
    assert f"written to {edits / 'told'}: facts.jsonl" in said
    assert "adapter" not in said
    assert "for good" not in said
    assert read_requests(edits / "told" / "facts.jsonl") == read_requests(edits / "first.jsonl")


def test_without_settings_they_are_chosen_once_and_it_says_why(edits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bed = load_testbed()
    one, two = bed.world.edit_rounds(n_rounds=2, size=18, seed=5, untouched=0).rounds
    for name, requests in (("one", one), ("two", two[:3])):  # nothing is tried of the second, and few edits show it
        write_requests(edits / f"{name}.jsonl", requests)
    given = ("--model", bed.path, "--statistics", edits / "stats", "--delta-only")
    assert _run("edit", *given, "--requests", edits / "one.jsonl", "--output", edits / "chosen") == 0
    said = capsys.readouterr()
    tried = said.err.count("on trial: ")
    assert tried in (13, 15)  # without halved steps, where few values reach their targets and all are to go further
    assert said.err.count("on trial: AlphaEdit, layers 0") == 6
    assert f"settings chosen by {tried} trial edits of 9 of the requests" in said.out
    chosen = EditState.load(edits / "chosen" / "state").batches[0]
    assert sum(request.edited for request in chosen.report.requests) >= 16
    assert chosen.settings.subject_keys
    # the other method of the same choice, with the parts of AlphaEdit+ off; nothing is tried again
    again = ("--settings", "auto", "--method", "alphaedit", "--output", edits / "again")
    assert _run("edit", *given, "--requests", edits / "two.jsonl", *again) == 0
    assert "on trial: " not in capsys.readouterr().err
    plain = EditState.load(edits / "again" / "state").batches[0].settings
    kept = json.loads((edits / "stats" / KEPT).read_text())["choices"]["any, plain"]
    assert kept["settings"] == chosen.settings.as_dict()
    assert kept["plain"] == plain.as_dict()
    assert (plain.search, plain.values) == (None, chosen.settings.values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--output", "x"), "nothing to do"),
        (("--requests", "R", "--output", "x"), "needs --statistics"),
        (("--revert", "1", "--output", "x"), "needs --state"),
        (("--requests", "R", "--statistics", "S", "--output", "F"), "not an empty folder"),
        (("--requests", "R", "--statistics", "S", "--output", "x", "--layers", "a"), "give numbers"),
        (("--requests", "R", "--statistics", "S", "--output", "x", "--layers", "2-1"), "a range such as 4-8"),
        (
            ("--requests", "R", "--statistics", "S", "--output", "x", "--layers", "0-8"),
            "layer is 3: the model has 3 blocks",
        ),
        (("--requests", "R", "--statistics", "S", "--output", "x", "--settings", "nope"), "nor a preset"),
        (("--requests", "R", "--statistics", "S", "--output", "x", "--layers", "0", "--method", "m"), "alphaedit"),
        (("--requests", "R", "--statistics", "F", "--output", "x", "--layers", "0"), "statistics"),
        (("--requests", "R", "--statistics", "S", "--output", "x", "--layers", "0", "--name", "all"), "name is 'all'"),
        (("--requests", "R", "--statistics", "S", "--output", "R", "--layers", "0"), "not an empty folder"),
        (("--requests", "R", "--statistics", "S", "--output", "R/x/y", "--layers", "0"), "no folder that can be"),
    ],
)
def test_wrong_usage(edits: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str) -> None:
    known = {
        "R/x/y": edits / "first.jsonl" / "x" / "y",
        "R": edits / "first.jsonl",
        "S": edits / "stats",
        "F": edits / "full",
        "x": edits / "x",
    }
    (edits / "full").mkdir()
    (edits / "full" / "file").write_text("")
    assert _run("edit", "--model", load_testbed().path, *(known.get(a, a) for a in arguments)) == 2
    assert message in capsys.readouterr().err
    assert not (edits / "x").exists()
