"""``corsa conflict-set`` as a user calls it, on the testbed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from corsa_plugins.alphaedit import AlphaEditSettings
from corsa_plugins.cli.app import main
from corsa_plugins.data.reading import read_probes, read_requests, write_probes, write_requests
from corsa_plugins.data.requests import Probe
from corsa_plugins.testbed import load_testbed
from tests.fixtures.alphaedit import TestbedBench


def _run(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    return int(exit_.value.code or 0)


@pytest.fixture
def files(testbed_bench: TestbedBench, tmp_path: Path) -> Path:
    """Statistics, quick settings, four edits, and candidates of which one repeats an edit."""
    bed = load_testbed()
    testbed_bench.statistics.save(tmp_path / "stats")
    settings = AlphaEditSettings.load("testbed").as_dict()
    settings["values"]["steps"] = 10
    (tmp_path / "quick.yaml").write_text(yaml.safe_dump(settings))
    plan = bed.world.edit_rounds(n_rounds=2, size=30, seed=0, untouched=20)
    write_requests(tmp_path / "edits.jsonl", plan.rounds[0][:4])
    write_requests(tmp_path / "candidates.jsonl", [*plan.rounds[1], plan.rounds[0][0]])
    write_probes(tmp_path / "keep.jsonl", [Probe(prompt=r.prompt, answer=r.target_new) for r in plan.untouched[:3]])
    return tmp_path


def _build(files: Path, kind: str, name: str, *more: Any, model: Any = None) -> int:
    given = ("--statistics", files / "stats", "--settings", files / "quick.yaml", "--quiet")
    candidates = ("-r", files / "candidates.jsonl", "--output", files / name)
    return _run("conflict-set", kind, "--model", model or load_testbed().path, *given, *candidates, *more)


def _figures(files: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (files / name).read_text(encoding="utf-8").splitlines()]


def test_three_sets_of_one_file(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = ("--statistics", files / "stats", "--settings", files / "quick.yaml", "--quiet")
    edit = ("--requests", files / "edits.jsonl", "--output", files / "edited")
    assert _run("edit", "--model", load_testbed().path, *edit, *same) == 0
    capsys.readouterr()
    edits, candidates = read_requests(files / "edits.jsonl"), read_requests(files / "candidates.jsonl")

    state = ("--state", files / "edited", "--reword", "--validation", files / "validation.jsonl")
    keep = ("--keep", files / "keep.jsonl", "--validation-share", "0.4")
    assert _build(files, "prior", "two.jsonl", "--size", 10, *state, *keep, model=files / "edited" / "model") == 0
    shown = capsys.readouterr().out
    assert "2 of 4 edits in force reworded, for 2 hard requests" in shown
    assert "prior: mean conflicts of 10 requests" in shown
    two, figures = read_requests(files / "two.jsonl"), _figures(files, "two.figures.jsonl")
    hard = [request for request, row in zip(two, figures, strict=True) if row["hard"]]
    # what is most like an earlier edit is that edit in other words
    assert {request.subject for request in hard} <= {request.subject for request in edits}
    assert all(request.prompt not in {one.prompt for one in edits} for request in two)
    assert len(hard) == 2
    rest = [row["prior_conflict"] for row in figures if not row["hard"]]
    assert all(row["prior_conflict"] > max(rest) for row in figures if row["hard"])
    probes, facts = read_probes(files / "validation.jsonl"), read_probes(files / "keep.jsonl")
    assert probes[4:] == facts
    by_prompt = {prompt: request for request in two for prompt in request.validation_prompts}
    assert all(by_prompt[probe.prompt].target_new == probe.answer for probe in probes[:4])

    assert _build(files, "preserved", "one.jsonl", "--size", 10, "--exclude", files / "two.jsonl") == 0
    others = ("--exclude", files / "two.jsonl", "--exclude", files / "one.jsonl")
    assert _build(files, "inconsistent", "three.jsonl", "--size", 10, *others) == 0
    sets = [read_requests(files / f"{name}.jsonl") for name in ("one", "two", "three")]
    prompts = [request.prompt for found in sets for request in found]
    assert len(set(prompts)) == 30  # no request in two of them
    assert {request.prompt for found in (sets[0], sets[2]) for request in found} <= {r.prompt for r in candidates}
    three = _figures(files, "three.figures.jsonl")
    low = [row["inconsistency"] for row in three if not row["hard"]]
    assert all(row["inconsistency"] >= max(low) - 1e-3 for row in three if row["hard"])


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("prior", (), "prior needs --state"),
        ("preserved", ("--reword",), "--reword goes with prior"),
        ("preserved", ("--residual-at", "1"), "--residual-at goes with inconsistent"),
        ("preserved", ("--keep", "DIR/keep.jsonl"), "--keep goes with --validation"),
        ("preserved", ("--validation", "DIR/set.jsonl"), "name another file for the validation set"),
        ("preserved", ("--exclude", "DIR/none.jsonl"), "none.jsonl: no such file"),
        ("preserved", ("-r", "DIR/set.figures.jsonl"), "set.figures.jsonl is a file that is read: name another one"),
    ],
)
def test_wrong_usage_is_one_line_and_writes_nothing(
    files: Path, kind: str, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [argument.replace("DIR", str(files)) for argument in arguments]
    assert _build(files, kind, "set.jsonl", "--size", 3, *given, model="/no/such/model") == 2
    assert message in capsys.readouterr().err
    assert not (files / "set.jsonl").exists()


def test_more_than_there_is_writes_nothing(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _build(files, "preserved", "set.jsonl", "--size", 99) == 2
    assert "a set of 99 from 31 candidates" in capsys.readouterr().err
    validation = ("--validation", files / "v.jsonl", "--validation-share", 1)
    bare = [r.model_copy(update={"validation_prompts": ()}) for r in read_requests(files / "candidates.jsonl")]
    write_requests(files / "candidates.jsonl", bare)
    assert _build(files, "preserved", "set.jsonl", "--size", 3, *validation) == 2
    assert "0 of 3 requests have a validation prompt" in capsys.readouterr().err
    assert not list(files.glob("set*"))
